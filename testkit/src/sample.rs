//! What measurements send and answer: a web client's request in a browser, and a homeserver's answer of 675 bytes.

use crate::http::{Request, response};

/// The fields that Element sends from Chromium besides `Host`: with it they are fourteen.
pub const FIELDS: [(&str, &str); 13] = [
    ("Connection", "keep-alive"),
    ("sec-ch-ua-platform", "\"Linux\""),
    ("Authorization", "Bearer syt_YWxpY2U_abcdefghijklmnopqrst_0a1b2c"),
    (
        "User-Agent",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
    ),
    ("sec-ch-ua", "\"Chromium\";v=\"140\", \"Not=A?Brand\";v=\"24\""),
    ("sec-ch-ua-mobile", "?0"),
    ("Accept", "application/json"),
    ("Origin", "https://app.element.io"),
    ("Sec-Fetch-Site", "cross-site"),
    ("Sec-Fetch-Mode", "cors"),
    ("Referer", "https://app.element.io/"),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    ("Accept-Language", "de-CH,de;q=0.9,en;q=0.8"),
];

/// An open endpoint.
pub const OPEN: &str = "/_matrix/client/versions";

/// An endpoint that the policy `balanced` guards with a token.
pub const GUARDED: &str = "/_matrix/client/v3/profile/%40alice%3Aexample.org";

/// Where a gateway asks whose token it is.
pub const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

/// A policy that removes three fields: all names of the rule's list are kept but Origin and Referer, and the agent goes by
/// its own key.
pub const STRIP_THREE: &str = r#"
extends = "balanced"
[rules.request_headers]
keep = [
    "accept-language", "sec-ch-*", "sec-fetch-*", "sec-gpc", "dnt", "save-data", "device-memory", "downlink", "ect", "rtt", "dpr",
    "width", "viewport-width", "from", "via", "forwarded", "x-forwarded-*", "x-real-ip", "x-client-ip", "x-cluster-client-ip",
    "x-original-*", "x-requested-with", "client-ip", "true-client-ip", "fastly-client-ip", "fly-client-ip", "cf-*", "cdn-loop",
    "x-amzn-*", "x-envoy-*",
]
"#;

/// That client's GET request.
pub fn request(target: &str) -> Request {
    FIELDS.iter().fold(Request::new("GET", target), |request, (name, value)| request.header(name, value))
}

/// The fields of an answer of Synapse.
pub const ANSWER_FIELDS: [(&str, &str); 7] = [
    ("Server", "Synapse/1.163.2"),
    ("Date", "Sun, 22 Nov 2026 00:00:00 GMT"),
    ("Content-Type", "application/json"),
    ("Cache-Control", "no-cache, no-store, must-revalidate"),
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, DELETE, OPTIONS"),
    ("Access-Control-Allow-Headers", "X-Requested-With, Content-Type, Authorization, Date"),
];

/// The answer to any request, whose token is Alice's.
pub fn answer(target: &[u8]) -> Vec<u8> {
    let is_whoami = target.starts_with(WHOAMI.as_bytes());
    let body = if is_whoami { WHO.to_owned() } else { body() };
    response(200, &ANSWER_FIELDS, body)
}

/// JSON of 675 bytes.
pub fn body() -> String {
    const FRAME: usize = r#"{"versions":[""]}"#.len();
    format!(r#"{{"versions":["{}"]}}"#, "r0.6.1.".repeat(100).split_at(675 - FRAME).0)
}

const WHO: &str = r#"{"user_id":"@alice:example.org","device_id":"ABCDEFGHIJ","is_guest":false}"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_has_the_size_that_it_says() {
        assert_eq!(body().len(), 675);
        assert!(serde_json::from_str::<serde_json::Value>(&body()).is_ok());
    }
}
