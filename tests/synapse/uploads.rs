//! Synapse refuses an upload that declares no length; through Mantlet it takes one.

use mantlet_testkit::http::Request;

use crate::support::Gateway;
use crate::world::{POLICIES, extends, through, world};

/// A body in two chunks.
fn chunked(body: &str) -> Vec<u8> {
    let (first, second) = body.split_at(body.len() / 2);
    format!("{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n", first.len(), second.len()).into_bytes()
}

#[test]
fn an_upload_without_a_length_succeeds() {
    let world = world();
    let body = "What was uploaded. ".repeat(1000);
    for policy in POLICIES {
        let user = world.user(&format!("uploads-{policy}"));
        let gateway = Gateway::start(&world.synapse.base_url(), &extends(policy));
        let upload = Request::new("POST", "/_matrix/media/v3/upload")
            .bearer(&user.access_token)
            .header("Content-Type", "text/plain")
            .header("Transfer-Encoding", "chunked")
            .body(chunked(&body));
        let direct = world.direct(&upload);
        assert_eq!(direct.status, 400, "Synapse needs no help any more: {}", direct.text());
        let answer = through(&gateway, &upload);
        assert_eq!(answer.status, 200, "{policy}: {}", answer.text());
        let uri = answer.json()["content_uri"].as_str().unwrap().trim_start_matches("mxc://").to_owned();
        let download = Request::new("GET", format!("/_matrix/client/v1/media/download/{uri}"));
        assert!(through(&gateway, &download.bearer(&user.access_token)).text() == body, "{policy}");
    }
}
