//! The policies in `tests/policies`: a new file is a new test.
//!
//! Each in `good/` passes `mantlet check`; each in `bad/` is refused with exactly the words of the `.expected` beside it.
//! After a wanted change of the words: `MANTLET_BLESS=1 cargo test --test it policies`, and read the difference.

use std::path::{Path, PathBuf};

use crate::process;

fn files(kind: &str) -> (PathBuf, Vec<String>) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policies").join(kind);
    let entries = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.filter(|name| name.ends_with(".toml")).collect();
    names.sort();
    (directory, names)
}

#[test]
fn good_policies_check() {
    let (directory, names) = files("good");
    assert!(names.len() >= 8, "{names:?}");
    for name in names {
        let ran = process::run(&directory, &["check", "--policy", &name]);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{name}");
        assert!(ran.out.contains(": good\n"), "{name}: {}", ran.out);
    }
}

#[test]
fn bad_policies_are_refused_in_these_words() {
    let (directory, names) = files("bad");
    // Files that begin with an underscore are there to be extended.
    let names: Vec<_> = names.into_iter().filter(|name| !name.starts_with('_')).collect();
    assert!(names.len() >= 20, "{names:?}");
    let mut wrong = Vec::new();
    for name in names {
        let ran = process::run(&directory, &["check", "--policy", &name]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{name}: {}", ran.err);
        let path = directory.join(&name).with_extension("expected");
        if std::env::var_os("MANTLET_BLESS").is_some() {
            std::fs::write(&path, &ran.err).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        if ran.err != expected {
            wrong.push(format!("{name}: expected\n{expected}\nfound\n{}", ran.err));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
