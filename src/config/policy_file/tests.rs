use super::*;
use std::fs;

fn text(text: &str) -> Result<PolicyFile, Problems> {
    PolicyFile::from_text("policy.toml", text, Path::new("/nonexistent")).and_then(good)
}

fn good((policy, problems): (PolicyFile, Problems)) -> Result<PolicyFile, Problems> {
    problems.or(policy)
}

fn told(policy: &str) -> Vec<String> {
    text(policy).unwrap_err().0.iter().map(ToString::to_string).collect()
}

/// A directory with these files; the first is loaded.
fn load(files: &[(&str, &str)]) -> (Result<PolicyFile, Problems>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs::write(dir.path().join(name), text).unwrap();
    }
    (PolicyFile::load(&dir.path().join(files[0].0)).and_then(good), dir)
}

fn rule<'a>(policy: &'a PolicyFile, name: &str) -> &'a Spanned<Value> {
    &policy.rules.iter().find(|(known, _)| known.get_ref() == name).unwrap().1
}

fn get<'a>(value: &'a Spanned<Value>, key: &str) -> &'a Spanned<Value> {
    value.get_ref().as_table().unwrap().get(key).unwrap()
}

const FAMILY: [(&str, &str); 3] = [
    (
        "child.toml",
        "extends = \"bases/parent.toml\"\nannounce_rule = false\n\n[rules.media]\nmode = \"report\"\n\n\
             [[rules.closed_endpoint]]\npath = \"/child\"\nanswer = { status = 403 }\n\n[rules.nested]\nanswer.status = 404\n\n\
             [[test]]\nrequest = \"GET /child\"\n",
    ),
    (
        "bases/parent.toml",
        "extends = \"grand.toml\"\n\n[unknown]\nfederation = \"deny\"\n\n[rules.media]\nmode = \"off\"\nhosts = [\"a\", \"b\"]\n\n\
             [[rules.closed_endpoint]]\npath = \"/parent1\"\n[[rules.closed_endpoint]]\npath = \"/parent2\"\n\n\
             [[test]]\nrequest = \"GET /parent\"\n",
    ),
    (
        "bases/grand.toml",
        "announce_rule = true\n\n[unknown]\nclient = \"deny\"\n\n[rules.media]\nhosts = [\"z\"]\nsize = 1\n\n[rules.nested]\n\
             answer = { status = 403, errcode = \"M_\\\"FORBIDDEN\\\"\\n\" }\n\n[rules.server_banner]\n\n\
             [[rules.closed_endpoint]]\npath = \"/grand\"\n",
    ),
];

#[test]
fn a_child_replaces_keys_and_comes_first_in_lists() {
    let (policy, dir) = load(&FAMILY);
    let policy = policy.unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(policy.files, FAMILY.map(|(name, _)| dir.path().join(name)));
    assert!(!policy.announce);
    assert_eq!(policy.unknown, Unknown { client: UnknownPolicy::Deny, federation: UnknownPolicy::Deny });
    let names: Vec<&str> = policy.rules.iter().map(|(name, _)| name.get_ref().as_str()).collect();
    assert_eq!(names, ["media", "closed_endpoint", "nested", "server_banner"]);
    let media = rule(&policy, "media");
    assert_eq!(get(media, "mode").get_ref().as_str(), Some("report"));
    assert_eq!(get(media, "hosts").get_ref().as_array().map(<[_]>::len), Some(2));
    assert_eq!(get(media, "size").get_ref(), &Value::Integer(1));
    let closed = rule(&policy, "closed_endpoint").get_ref().as_array().unwrap();
    let paths: Vec<_> = closed.iter().map(|table| get(table, "path").get_ref().as_str().unwrap()).collect();
    assert_eq!(paths, ["/child", "/parent1", "/parent2", "/grand"]);
    let answer = get(rule(&policy, "nested"), "answer");
    assert_eq!(get(answer, "status").get_ref(), &Value::Integer(404));
    assert_eq!(get(answer, "errcode").get_ref().as_str(), Some("M_\"FORBIDDEN\"\n"));
    assert_eq!(policy.tests.len(), 1, "the tests of a base are its own");
    assert_eq!(get(&policy.tests[0], "request").get_ref().as_str(), Some("GET /child"));
}

#[test]
fn every_value_keeps_its_origin() {
    let (policy, dir) = load(&FAMILY);
    let policy = policy.unwrap();
    let place = |span| {
        let place = policy.sources.locate(span).unwrap();
        (PathBuf::from(place.file).strip_prefix(dir.path()).unwrap().display().to_string(), place.line)
    };
    let media = rule(&policy, "media");
    assert_eq!(place(policy.rules[0].0.span()), ("child.toml".into(), 4));
    assert_eq!(place(get(media, "mode").span()), ("child.toml".into(), 5));
    assert_eq!(place(get(media, "hosts").span()), ("bases/parent.toml".into(), 8));
    assert_eq!(place(get(media, "size").span()), ("bases/grand.toml".into(), 8));
}

#[test]
fn the_printed_policy_reads_as_the_same_policy() {
    let (policy, dir) = load(&FAMILY);
    let policy = policy.unwrap();
    let printed = policy.print();
    let again = text(&printed).unwrap_or_else(|problems| panic!("{problems}\n{printed}"));
    // Spans are not compared.
    assert_eq!((&again.rules, &again.tests), (&policy.rules, &policy.tests), "{printed}");
    assert_eq!((again.unknown, again.announce), (policy.unknown, policy.announce));
    let origin = |line: &str, place: &str| {
        let found =
            printed.lines().find(|printed| printed.starts_with(line)).unwrap_or_else(|| panic!("{line}\n{printed}"));
        assert!(found.ends_with(&format!("# {}/{place}", dir.path().display())), "{found}");
    };
    origin("mode = \"report\"", "child.toml:5");
    origin("hosts = [\"a\", \"b\"]", "bases/parent.toml:8");
    origin("answer.errcode = \"M_\\\"FORBIDDEN\\\"\\n\"", "bases/grand.toml:11");
    origin("[rules.server_banner]", "bases/grand.toml:13");
    assert!(printed.lines().filter(|line| !line.is_empty()).all(|line| line.contains("# /")), "{printed}");
}

#[test]
fn the_shipped_policies_are_read() {
    for built_in in BuiltIn::ALL {
        let policy = PolicyFile::built_in(built_in).and_then(good).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(policy.name, format!("built-in {built_in}"));
        assert_eq!(policy.digest.len(), 16);
        assert!(policy.files.is_empty());
        let child = text(&format!("extends = \"{built_in}\"")).unwrap();
        assert_eq!(child.rules, policy.rules);
        assert_ne!(child.digest, policy.digest);
    }
}

#[test]
fn a_digest_tells_texts_apart() {
    let digest = |policy: &str| text(policy).unwrap().digest;
    assert_eq!(digest("[rules.a]"), digest("[rules.a]"));
    assert_ne!(digest("[rules.a]"), digest("[rules.b]"));
    assert_ne!(digest("[rules.a]"), digest("[rules.a] "));
}

#[test]
fn a_file_that_says_nothing_is_refused() {
    for policy in ["", "# soon\n", "announce_rule = true\n", "[unknown]\n", "[rules]\n", "[[test]]\n"] {
        let told = told(policy);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("policy.toml:1:1: policy.toml says nothing: a half-written file?"), "{told:?}");
    }
    let (policy, _dir) = load(&[("a.toml", "extends = \"b.toml\"\n[rules.a]\n"), ("b.toml", "")]);
    assert!(policy.unwrap_err().to_string().contains("b.toml says nothing"), "nor may a base");
}

#[test]
fn a_wrong_base_is_told_with_a_suggestion() {
    assert_eq!(
        told("extends = \"balancd\"\n"),
        [
            "policy.toml:1:11: there is neither a built-in policy nor a file \"balancd\"\n    help: did you mean \"balanced\"?"
        ]
    );
    assert!(
        told("extends = \"fort-knox\"\n")[0]
            .ends_with("help: write strict, balanced, transparent or the path of a file")
    );
    assert_eq!(told("extends = \"./b.toml\"\n"), ["policy.toml:1:11: /nonexistent/./b.toml does not exist"]);
    assert_eq!(
        told("extends = 5\n"),
        ["policy.toml:1:11: `extends`: expected the name of a policy, found a whole number"]
    );
}

#[test]
fn a_circle_is_refused() {
    let (policy, dir) = load(&[
        ("a.toml", "extends = \"b.toml\"\n"),
        ("b.toml", "\nextends = \"sub/../c.toml\"\n"),
        ("c.toml", "extends = \"b.toml\"\n"),
        ("sub/x", ""),
    ]);
    let d = dir.path().display();
    assert_eq!(
        policy.unwrap_err().to_string(),
        format!(
            "{d}/sub/../c.toml:1:11: policies extend each other in a circle: {d}/b.toml → {d}/sub/../c.toml → {d}/sub/../b.toml"
        )
    );
    let (policy, _dir) = load(&[("a.toml", "extends = \"a.toml\"\n")]);
    assert!(policy.unwrap_err().to_string().contains("in a circle"));
}

#[test]
fn eight_deep_is_read_and_nine_is_refused() {
    let chain = |length: usize| {
        let texts: Vec<(String, String)> = (1..=length)
            .map(|n| {
                let extends = if n < length { format!("extends = \"{}.toml\"\n", n + 1) } else { String::new() };
                (format!("{n}.toml"), format!("{extends}[rules.r{n}]\n"))
            })
            .collect();
        load(&texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect::<Vec<_>>()).0
    };
    assert_eq!(chain(8).unwrap().rules.len(), 8);
    let problems = chain(9).unwrap_err();
    assert_eq!(problems.0.len(), 1);
    assert!(problems.0[0].what.starts_with("more than 8 policies extend each other"), "{problems}");
    assert!(problems.0[0].location.as_ref().unwrap().file.ends_with("8.toml"));
}

#[test]
fn problems_of_all_files_are_told_at_once() {
    let (policy, _dir) = load(&[
        (
            "a.toml",
            "extends = \"b.toml\"\nanounce_rule = true\n[rules]\nnotary = \"direct\"\n[unknown]\nclient = \"dney\"\n",
        ),
        (
            "b.toml",
            "[rule.x]\n[[rules.media]]\n[rules.closed_endpoint]\npath = \"a\"\n[[peer]]\nnames = []\n[rules.y]\n[unknown]\npeers = 1\n",
        ),
    ]);
    let problems = policy.unwrap_err();
    let expected = [
        ("a.toml", 2, "unknown key `anounce_rule`"),
        ("a.toml", 4, "the rule `notary` is written [rules.notary]"),
        ("a.toml", 6, "unknown value \"dney\" for `client` in [unknown]"),
        ("b.toml", 1, "unknown key `rule`"),
        ("b.toml", 2, "the rule `media` is written [rules.media]"),
        ("b.toml", 3, "the rule `closed_endpoint` is written [[rules.closed_endpoint]]"),
        ("b.toml", 5, "`peer` cannot be enforced by this version of the gateway"),
        ("b.toml", 9, "unknown key `peers` in [unknown]"),
    ];
    assert_eq!(problems.0.len(), expected.len(), "{problems}");
    for (problem, (file, line, what)) in problems.0.iter().zip(expected) {
        let location = problem.location.as_ref().unwrap();
        assert!(location.file.ends_with(file), "{problem}");
        assert_eq!((location.line, problem.what.as_str()), (line, what));
    }
    assert_eq!(problems.0[0].help.as_deref(), Some("did you mean `announce_rule`?"));
    assert_eq!(problems.0[3].help.as_deref(), Some("did you mean `rules`?"));
}

#[test]
fn a_syntax_error_in_a_base_is_told_there() {
    let (policy, _dir) = load(&[("a.toml", "extends = \"b.toml\"\n[rules.a]\n"), ("b.toml", "[rules.b]\nx = \n")]);
    let problems = policy.unwrap_err();
    assert_eq!(problems.0.len(), 1, "{problems}");
    assert!(problems.0[0].location.as_ref().is_some_and(|place| place.file.ends_with("b.toml") && place.line == 2));
}

#[test]
fn lists_that_later_versions_enforce_are_appended_too() {
    let mut problems = Problems::default();
    let mut sources = Sources::default();
    let mut child =
        sources.parse("a", "peer = [1]\negress = { destination = [1], other = [1] }", &mut problems).into_inner();
    let base =
        sources.parse("b", "peer = [2]\negress = { destination = [2], other = [2] }", &mut problems).into_inner();
    merge(&mut child, base, &mut Vec::new());
    let length = |value: &Spanned<Value>| value.get_ref().as_array().map(<[_]>::len);
    let egress = child.get("egress").unwrap();
    assert_eq!(child.get("peer").map(length), Some(Some(2)));
    assert_eq!((length(get(egress, "destination")), length(get(egress, "other"))), (Some(2), Some(1)));
}

#[test]
fn no_broken_file_panics_and_what_is_read_prints_as_it_reads() {
    let whole = format!(
        "{}\n[rules.\"a b\".c]\nd = [1.5, 1979-05-27, {{ x = 1, \"\" = {{}} }}]\ne = {{}}\n",
        FAMILY[0].1.replace("bases/parent.toml", "strict")
    );
    let mut read = 0;
    let mut check = |policy: &str| {
        let Ok(policy) = text(policy) else { return };
        let again = text(&policy.print()).unwrap_or_else(|problems| panic!("{problems}\n{}", policy.print()));
        assert_eq!((&again.rules, &again.tests), (&policy.rules, &policy.tests), "{}", policy.print());
        read += 1;
    };
    for end in 0..whole.len() {
        check(&whole[..end]);
        check(&whole[end..]);
        let mut broken = whole.clone();
        broken.replace_range(end..=end, ["\"", "[", "=", "\n", "{", "🗝", "\0", "]", "."][end % 9]);
        check(&broken);
    }
    check(&whole);
    assert!(read > 50, "{read} were read");
}
