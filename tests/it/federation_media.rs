//! Files of other servers: one that is elsewhere is fetched here, and nobody is led anywhere.

use std::sync::{Arc, Mutex, OnceLock};

use mantlet_testkit::backend::{Answer, Backend};
use mantlet_testkit::http::{Response, response};

use crate::common::noise;
use crate::federation_door::World;

/// The parts of a file as Synapse writes them, with these fields before the content.
fn parts(fields: &[(&str, &str)], content: &[u8]) -> Vec<u8> {
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "\r\n--6067d4698f8d40a0\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--6067d4698f8d40a0\r\n{fields}\r\n"
    );
    [head.as_bytes(), content, b"\r\n--6067d4698f8d40a0--\r\n\r\n"].concat()
}

fn multipart(body: &[u8]) -> Answer {
    Answer::Bytes(response(200, &[("Content-Type", "multipart/mixed; boundary=6067d4698f8d40a0")], body))
}

/// Type, disposition and content of the file in an answer, whose only other part is an empty object.
#[track_caller]
fn file(answer: &Response) -> (String, Option<String>, Vec<u8>) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let boundary = answer.header("content-type").unwrap().strip_prefix("multipart/mixed; boundary=").unwrap();
    let split = |text: &[u8], at: &str| {
        let at = at.as_bytes();
        let found = text.windows(at.len()).position(|window| window == at).unwrap();
        (text[..found].to_vec(), text[found + at.len()..].to_vec())
    };
    let (json, rest) = split(&answer.body, &format!("\r\n--{boundary}\r\n"));
    assert_eq!(String::from_utf8(json).unwrap(), format!("--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}"));
    let (fields, rest) = split(&rest, "\r\n\r\n");
    let (content, rest) = split(&rest, &format!("\r\n--{boundary}--\r\n"));
    assert!(rest.is_empty());
    let fields = String::from_utf8(fields).unwrap();
    let field = |name: &str| fields.lines().find_map(|line| Some(line.strip_prefix(name)?.to_owned()));
    assert!(!fields.to_ascii_lowercase().contains("location"), "{fields}");
    (field("Content-Type: ").unwrap(), field("Content-Disposition: "), content)
}

const MEDIA: &str = "/_matrix/federation/v1/media/download/abc?timeout_ms=20000";

#[test]
fn a_file_comes_as_it_is_under_a_delimiter_that_only_we_know() {
    let content = [noise(200_000), b"\r\n--6067d4698f8d40a\r\nLocation: https://cdn.test/\r\n\r\n".to_vec()].concat();
    let body = parts(&[("Content-Type", "image/png"), ("content-disposition", "inline; filename=a.png")], &content);
    let world = World::new(move |_| multipart(&body));
    world.dns.address("hs.test", "127.0.1.1");
    let answer = world.ask(&format!("hs.test:{}", world.home.addr().port()), MEDIA);
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    let (kind, disposition, found) = file(&answer);
    assert_eq!((kind.as_str(), disposition.as_deref()), ("image/png", Some("inline; filename=a.png")));
    assert!(found == content, "{} bytes of {}", found.len(), content.len());
}

#[test]
fn a_file_that_is_elsewhere_is_fetched_from_there_and_nothing_is_told_there() {
    let content = noise(100_000);
    let (port, there) = (Arc::new(OnceLock::new()), content.clone());
    let here = Arc::clone(&port);
    let world = World::new(move |request| {
        let port: u16 = *here.get().unwrap();
        match (request.header("host").unwrap().split(':').next().unwrap(), request.target_text().as_str()) {
            ("hs.test", _) => multipart(&parts(&[("Location", &format!("https://cdn.test:{port}/one?sig=%2f"))], b"")),
            ("cdn.test", "/one?sig=%2f") => {
                Answer::Bytes(response(307, &[("Location", &format!("https://web.test:{port}/two"))], ""))
            }
            ("web.test", "/two") => {
                Answer::Bytes(response(200, &[("Content-Type", "image/webp"), ("Set-Cookie", "a=b")], &there))
            }
            other => panic!("{other:?}"),
        }
    });
    port.set(world.web.addr().port()).unwrap();
    for name in ["hs.test", "cdn.test", "web.test"] {
        world.dns.address(name, "127.0.1.1");
    }
    let answer = world.ask(&format!("hs.test:{}", world.home.addr().port()), MEDIA);
    assert_eq!((file(&answer), answer.header("set-cookie")), (("image/webp".into(), None, content), None));
    for request in &world.backend.requests()[1..] {
        let mut fields: Vec<_> = request.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["accept", "connection", "host", "user-agent"], "{:?}", request.headers);
        assert_eq!(request.header("user-agent"), Some("Mozilla/5.0 (compatible)"));
    }
}

#[test]
fn an_old_redirect_of_media_is_followed_here_and_never_handed_on() {
    for media in [
        "/_matrix/media/v3/download/hs.test/abc?allow_redirect=true",
        MEDIA,
        "/_matrix/media/r0/thumbnail/hs.test/abc?width=1",
    ] {
        let port = Arc::new(OnceLock::new());
        let here = Arc::clone(&port);
        let world = World::new(move |request| match request.target_text().as_str() {
            "/file" => Answer::Bytes(response(200, &[("Content-Type", "image/png")], "a file")),
            _ => Answer::Bytes(response(
                308,
                &[("Location", &format!("https://cdn.test:{}/file", here.get().unwrap()))],
                "",
            )),
        });
        port.set(world.web.addr().port()).unwrap();
        world.dns.address("hs.test", "127.0.1.1");
        world.dns.address("cdn.test", "127.0.1.1");
        let answer = world.ask(&format!("hs.test:{}", world.home.addr().port()), media);
        assert_eq!((answer.status, answer.text().as_str(), answer.header("location")), (200, "a file", None));
        assert_eq!(world.backend.last().unwrap().header("authorization"), None);
    }
}

#[test]
fn no_answer_leads_to_where_nobody_may_go() {
    let canary = Backend::start(|_| Answer::Bytes(response(200, &[("Content-Type", "image/png")], "canary"))).unwrap();
    let canary_port = canary.addr().port();
    let port = Arc::new(OnceLock::new());
    let way = Arc::new(std::sync::Mutex::new(Vec::new()));
    let here = Arc::clone(&way);
    let world = World::new(move |_| Answer::Bytes(here.lock().unwrap().clone()));
    port.set(world.home.addr().port()).unwrap();
    world.dns.address("hs.test", "127.0.1.1");
    world.dns.address("inside.test", "127.0.0.1");
    world.dns.address("cdn.test", "127.0.1.1");
    world.dns.alias("alias.test", "inside.test");
    let federation = world.home.addr().port();
    let server = format!("hs.test:{federation}");
    let places = [
        format!("https://127.0.0.1:{federation}/"),
        format!("https://localhost:{federation}/"),
        format!("https://inside.test:{federation}/"),
        format!("https://alias.test:{federation}/"),
        format!("https://127.1:{federation}/"),
        format!("https://0x7f000001:{federation}/"),
        format!("https://2130706433:{federation}/"),
        format!("https://0177.0.0.1:{federation}/"),
        format!("https://[::ffff:127.0.0.1]:{federation}/"),
        format!("https://[::1]:{federation}/"),
        format!("https://0.0.0.0:{federation}/"),
        format!("https://user@127.0.0.1:{federation}/"),
        format!("https://hs.test@127.0.0.1:{federation}/"),
        format!("http://127.0.0.1:{canary_port}/"),
        format!("http://inside.test:{canary_port}/"),
        format!("http://cdn.test:{canary_port}/"),
        format!("//127.0.0.1:{federation}/"),
        "/relative".to_owned(),
        "matrix-federation://hs.test/x".to_owned(),
        "https://cdn.test:22/".to_owned(),
        "https://cdn.test:80/".to_owned(),
        "file:///etc/passwd".to_owned(),
    ];
    for place in &places {
        let redirect = response(307, &[("Location", place)], "");
        let location = response(
            200,
            &[("Content-Type", "multipart/mixed; boundary=6067d4698f8d40a0")],
            parts(&[("Location", place)], b""),
        );
        for answer in [redirect, location] {
            *way.lock().unwrap() = answer;
            let answer = world.ask(&server, MEDIA);
            // 424: of a 502 Synapse would conclude that the server is down, and leave it alone.
            assert_eq!((answer.status, answer.header("location")), (424, None), "{place}: {}", answer.text());
        }
    }
    // Round and round.
    *way.lock().unwrap() = response(307, &[("Location", &format!("https://cdn.test:{federation}/"))], "");
    assert_eq!(world.ask(&server, MEDIA).status, 424);
    assert_eq!(world.gateway.records(1)[0]["error"], "origin_file");
    assert!(world.others["127.0.0.1"].names().is_empty() && canary.requests().is_empty());
    assert!(
        world.dns.asked().iter().all(|(name, _)| !name.contains("127") && !name.contains("0x7f")),
        "{:?}",
        world.dns.asked()
    );
}

#[test]
fn parts_that_say_two_things_say_nothing() {
    let boundary = "6067d4698f8d40a0";
    let elsewhere = "Location: https://inside.test/\r\n";
    for body in [
        // Before the file, after it, twice, in the clothes of a field of another kind.
        format!(
            "--{boundary}\r\nContent-Type: application/json\r\n{elsewhere}\r\n{{}}\r\n--{boundary}\r\nContent-Type: a/b\r\n\r\nx\r\n--{boundary}--\r\n"
        ),
        format!(
            "--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\nContent-Type: a/b\r\n\r\nx\r\n--{boundary}\r\n{elsewhere}\r\n\r\n--{boundary}--\r\n"
        ),
    ] {
        let world = World::new(move |_| multipart(body.as_bytes()));
        world.dns.address("hs.test", "127.0.1.1");
        let answer = world.ask(&format!("hs.test:{}", world.home.addr().port()), MEDIA);
        assert_eq!(file(&answer), ("a/b".into(), None, b"x".to_vec()));
    }
    for body in [
        format!(
            "--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\nLocation: https://a.test/\r\nlocation: https://b.test/\r\n\r\n\r\n--{boundary}--\r\n"
        ),
        format!(
            "--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\nno field\r\n\r\nx\r\n--{boundary}--\r\n"
        ),
        format!("--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}--\r\n"),
        format!(
            "--{boundary}\r\nContent-Type: application/json\r\n\r\n{}\r\n--{boundary}\r\n\r\nx\r\n--{boundary}--\r\n",
            " ".repeat(100_000)
        ),
        String::new(),
    ] {
        let world = World::new(move |_| multipart(body.as_bytes()));
        world.dns.address("hs.test", "127.0.1.1");
        assert_eq!(world.ask(&format!("hs.test:{}", world.home.addr().port()), MEDIA).status, 424);
    }
}

/// Synapse reads parts wherever it finds the word, and writes a file's id into the path as a client named it.
#[test]
fn parts_are_read_here_or_by_nobody() {
    let kind = Arc::new(Mutex::new(String::new()));
    let here = Arc::clone(&kind);
    let world = World::new(move |_| {
        let body = parts(&[("Location", "https://cdn.test/")], b"");
        Answer::Bytes(response(200, &[("Content-Type", &here.lock().unwrap())], &body))
    });
    world.dns.address("hs.test", "127.0.1.1");
    let server = format!("hs.test:{}", world.home.addr().port());
    let download = "/_matrix/federation/v1/media/download";
    for (path, status) in [
        (format!("{download}/abc?timeout_ms=20000"), 424),
        (format!("{download}/a/b?timeout_ms=20000"), 424),
        (format!("{download}/a%2Fb"), 424),
        (format!("{download}/"), 424),
        ("/_matrix/federation/v1/media/another/abc".to_owned(), 424),
        ("/_matrix/federation/v1/query/profile?user_id=%40a%3Ahs.test".to_owned(), 502),
        ("/_matrix/federation/v1/nothing/known".to_owned(), 502),
        // Read elsewhere, not at all.
        ("/_matrix/media/v3/download/hs.test/abc".to_owned(), 200),
    ] {
        for of in ["multipart/mixed; ", "image/png; ", "", "image/png; a=\"; b", "x"] {
            *kind.lock().unwrap() = format!("{of}boundary=6067d4698f8d40a0");
            let answer = world.ask(&server, &path);
            assert_eq!(answer.status, status, "{path} {of}");
            assert_eq!(status == 200, answer.text().contains("cdn.test"), "{path} {of}");
        }
    }
}

/// A person waits for one file, and everybody for the server.
#[test]
fn trouble_of_a_place_is_not_taken_for_the_servers() {
    let port = Arc::new(OnceLock::new());
    let here = Arc::clone(&port);
    let world = World::new(move |request| {
        let elsewhere = format!("https://cdn.test:{}/", here.get().unwrap());
        match request.header("host").unwrap().split(':').next().unwrap() {
            "cdn.test" => Answer::Bytes(response(500, &[], "")),
            _ if request.target_text() == MEDIA => multipart(&parts(&[("Location", &elsewhere)], b"")),
            _ => Answer::Bytes(response(308, &[("Location", &elsewhere)], "")),
        }
    });
    port.set(world.web.addr().port()).unwrap();
    world.dns.address("hs.test", "127.0.1.1");
    let server = format!("hs.test:{}", world.home.addr().port());
    for is_there in [false, true] {
        if is_there {
            world.dns.address("cdn.test", "127.0.1.1");
        }
        for path in [MEDIA, "/_matrix/media/v3/download/hs.test/abc", "/_matrix/federation/v1/media/thumbnail/abc"] {
            assert_eq!(world.ask(&server, path).status, 424, "{path}, {is_there}");
        }
    }
}

#[test]
fn a_file_that_breaks_off_is_never_whole() {
    let body = parts(&[("Content-Type", "a/b")], &noise(50_000));
    let cut = body[..body.len() - 30].to_vec();
    let world = World::new(move |_| multipart(&cut));
    world.dns.address("hs.test", "127.0.1.1");
    let request = world.request("GET", &format!("hs.test:{}", world.home.addr().port()), MEDIA);
    let error = request.try_send(world.gateway.addr()).unwrap_err();
    assert!(format!("{error:?}").contains("cut after"), "{error:?}");
}
