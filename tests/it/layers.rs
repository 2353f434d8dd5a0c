//! Holds the order of modules in `src/lib.rs` true: each uses what stands above it, and nothing below.

use std::path::{Path, PathBuf};

/// The modules as `lib.rs` lists them.
fn order(lib: &str) -> Vec<String> {
    lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).map(str::to_owned).collect()
}

/// Each use of a module that stands below the one of the file, or that is none, as `file:line: what`.
///
/// A path is looked at wherever it stands, not only after `use`. Tests come last in a file and may use anything.
fn violations<'a>(order: &[String], files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let place = |name: &str| order.iter().position(|known| known == name);
    let mut found = Vec::new();
    for (file, text) in files {
        let own = file.split('/').next().unwrap_or_default().trim_end_matches(".rs");
        if ["lib", "main"].contains(&own) {
            continue;
        }
        let Some(own_place) = place(own) else {
            found.push(format!("{file}: `{own}` is not in lib.rs"));
            continue;
        };
        let code = text.lines().take_while(|line| !line.trim_start().starts_with("#[cfg(test)]"));
        for (number, line) in code.enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            for used in modules(line) {
                let what = match place(&used) {
                    Some(used_place) if used_place <= own_place => continue,
                    Some(_) => format!("{own} uses {used}, which stands below it"),
                    None => format!("`crate::{used}` is no module of lib.rs"),
                };
                found.push(format!("{file}:{}: {what}", number + 1));
            }
        }
    }
    found
}

/// The top modules that a line names after `crate::`, also in braces.
fn modules(line: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    let paths = line.split("crate::").skip(1);
    paths
        .flat_map(|path| match path.strip_prefix('{') {
            None => vec![word(path)],
            Some(list) => {
                let mut depth = 0;
                let parts = list.split(|c| {
                    depth += i32::from(c == '{') - i32::from(c == '}');
                    (c == ',' && depth == 0) || depth < 0
                });
                parts.map(|part| word(part.trim())).filter(|name| !name.is_empty()).collect()
            }
        })
        .collect()
}

fn sources(directory: &Path, to: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, to);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            to.push(path);
        }
    }
}

/// Files that are compiled for tests alone.
fn is_for_tests(file: &str) -> bool {
    file.ends_with("/tests.rs") || file.ends_with("/testing.rs")
}

#[test]
fn each_module_uses_only_what_stands_above_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let order = order(&std::fs::read_to_string(root.join("lib.rs")).unwrap());
    assert!(order.len() > 10, "{order:?}");
    let mut paths = Vec::new();
    sources(&root, &mut paths);
    let files: Vec<_> = paths
        .iter()
        .map(|path| {
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .filter(|(name, _)| !is_for_tests(name))
        .collect();
    let uses: usize = files.iter().map(|(_, text)| text.matches("use crate::").count()).sum();
    assert!(uses > 100, "only {uses} uses were read");
    let found = violations(&order, files.iter().map(|(name, text)| (name.as_str(), text.as_str())));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_use_of_what_stands_below_is_found() {
    let order = order("pub mod first;\n// pub mod none;\npub mod second;\npub mod third;\n");
    assert_eq!(order, ["first", "second", "third"]);
    let found = |file: &str, text: &str| violations(&order, [(file, text)]);
    assert!(found("second/a.rs", "use crate::first::A;\nuse crate::second::b;\nuse super::x;").is_empty());
    assert_eq!(
        found("second/a.rs", "\npub(crate) use crate::third::A;"),
        ["second/a.rs:2: second uses third, which stands below it"]
    );
    assert_eq!(
        found("first.rs", "fn f() -> crate::second::A {}"),
        ["first.rs:1: first uses second, which stands below it"]
    );
    assert_eq!(found("first.rs", "use crate::{first, second::{a, b}, third};").len(), 2);
    assert_eq!(found("first.rs", "use crate::other;"), ["first.rs:1: `crate::other` is no module of lib.rs"]);
    assert_eq!(found("new/mod.rs", ""), ["new/mod.rs: `new` is not in lib.rs"]);
    assert!(found("first.rs", "// crate::third\n#[cfg(test)]\nmod tests { use crate::third; }").is_empty());
}
