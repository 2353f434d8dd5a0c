//! Forms as `application/x-www-form-urlencoded` writes them.

use bytes::Bytes;
use percent_encoding::percent_decode;

/// A form without the fields of this name; nothing if it has none.
pub(super) fn without(body: &[u8], name: &[u8]) -> Option<Bytes> {
    let is_other = |field: &&[u8]| {
        let written = field.split(|byte| *byte == b'=').next().unwrap_or_default();
        let written: Vec<u8> = written.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
        percent_decode(&written).collect::<Vec<_>>() != name
    };
    let fields = || body.split(|byte| *byte == b'&');
    if fields().all(|field| is_other(&field)) {
        return None;
    }
    Some(fields().filter(is_other).collect::<Vec<_>>().join(&b'&').into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_goes_however_it_is_spelled_and_every_other_stays() {
        for (body, left) in [
            ("secret=s&response=r&remoteip=192.0.2.7", Some("secret=s&response=r")),
            ("remoteip=1&a=%26remoteip%3D1", Some("a=%26remoteip%3D1")),
            ("%72emote%69p=1&remoteip&a=b=c&remoteip=", Some("a=b=c")),
            ("remoteip=1", Some("")),
            ("secret=s&response=remoteip", None),
            ("remoteip+=1", None),
            ("", None),
        ] {
            assert_eq!(without(body.as_bytes(), b"remoteip").as_deref(), left.map(str::as_bytes), "{body}");
        }
    }
}
