//! What the documents say is true: every TOML block is read, every `mantlet` command gives the output that stands there,
//! every link leads somewhere, and what is generated is up to date.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a document that cannot be read has failed")]

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mantlet::config::compiled::Compiled;
use mantlet::config::gateway::{Gateway, PolicySource};
use mantlet::rules::RULES;

#[test]
fn every_toml_block_is_a_policy_or_a_gateway_file() {
    let mut read = 0;
    for document in documents() {
        for block in document.blocks().filter(|block| block.language == "toml") {
            let dir = surroundings(&document);
            let path = dir.path().join("block.toml");
            fs::write(&path, &block.text).unwrap();
            let result = match is_gateway_file(&block.text) {
                true => Gateway::load(&path).map(drop),
                false => Compiled::load(&PolicySource::File(path)).map(drop),
            };
            result.unwrap_or_else(|problems| panic!("{}:{}: {problems}", document.name, block.line));
            read += 1;
        }
    }
    assert!(read > 10, "only {read} blocks were found");
}

#[test]
fn every_mantlet_command_prints_what_stands_there() {
    let mut run = 0;
    for document in documents() {
        let dir = surroundings(&document);
        for block in document.blocks().filter(|block| block.language == "console") {
            for (command, expected) in commands(&block.text) {
                let place = format!("{}:{}: {command}", document.name, block.line);
                let Some(arguments) = command.strip_prefix("mantlet ") else { continue };
                // These need a gateway that runs.
                if ["run", "reload", "ledger"].iter().any(|verb| arguments.starts_with(verb)) {
                    continue;
                }
                let output = Command::new(env!("CARGO_BIN_EXE_mantlet"))
                    .args(words(arguments))
                    .current_dir(dir.path())
                    .env_remove("MANTLET_CONFIG")
                    .output()
                    .unwrap();
                let printed = [output.stdout, output.stderr].concat();
                let printed = String::from_utf8(printed).unwrap();
                assert!(
                    is_like(printed.trim_end(), &expected),
                    "{place}\n-- prints --\n{printed}\n-- and not --\n{expected}"
                );
                run += 1;
            }
        }
    }
    assert!(run > 5, "only {run} commands were found");
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    for document in documents() {
        for target in
            document.text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
        {
            if target.contains("://") || target.starts_with('#') {
                continue;
            }
            let file = target.split('#').next().unwrap_or_default();
            let path = document.path.parent().unwrap().join(file);
            assert!(path.exists(), "{}: {target}", document.name);
        }
    }
}

#[test]
fn the_ledger_names_the_rule_that_closes_each_row() {
    let ledger = fs::read_to_string(root().join("docs/ledger.md")).unwrap();
    let row = |id: &str| ledger.lines().find(|line| line.starts_with(&format!("| {id} ")));
    for rule in RULES {
        for id in rule.ledger {
            let row = row(id).unwrap_or_else(|| panic!("{id} of {} has no row", rule.name));
            assert!(row.contains(&format!("`{}", rule.name)), "{row}");
            assert!(!row.contains("| not yet |"), "{row}");
        }
    }
    for number in 1..=32 {
        assert!(row(&format!("L{number:02}")).is_some(), "L{number:02} has no row");
    }
}

#[test]
fn the_readme_lists_every_rule() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for rule in RULES {
        let ledger = if rule.ledger.is_empty() { "-".to_owned() } else { rule.ledger.join(", ") };
        let start = format!("| `{}` | {ledger} |", rule.name);
        assert!(readme.lines().any(|line| line.starts_with(&start)), "no line begins with {start}");
    }
}

#[test]
fn the_reference_policy_is_made_of_the_examples_of_all_rules() {
    let path = root().join("policies/reference.toml");
    let made = reference();
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == made, "policies/reference.toml is stale: UPDATE_REFERENCE=1 cargo test --test docs");
    Compiled::load(&PolicySource::File(path)).unwrap_or_else(|problems| panic!("{problems}"));
}

/// All rules with all of their keys, each as the head of its file shows it.
fn reference() -> String {
    let mut text = String::from(
        "# Every rule with every key, as the rules' own files show them: `mantlet rules NAME` prints the same.\n\
         # To look things up, not to use: a policy of your own begins with extends = \"balanced\" or \"strict\".\n\
         # Generated: UPDATE_REFERENCE=1 cargo test --test docs\n",
    );
    for rule in RULES {
        let head = rule.head();
        let head = head.split_once("\nExample:").map_or(head.as_str(), |(head, _)| head);
        let ledger = if rule.ledger.is_empty() { String::new() } else { format!(" ({})", rule.ledger.join(", ")) };
        text.push_str(&format!("\n# == {}{ledger}\n", rule.name));
        for line in head.lines() {
            writeln!(text, "{}", format!("# {line}").trim_end()).unwrap();
        }
        writeln!(text, "{}", rule.example().trim()).unwrap();
    }
    text
}

/// A document of the project.
struct Document {
    name: String,
    path: PathBuf,
    text: String,
}

/// What stands between two fences.
struct Block {
    language: String,
    line: usize,
    text: String,
}

impl Document {
    /// The blocks between fences; one in a list is as far to the left as its fence.
    fn blocks(&self) -> impl Iterator<Item = Block> {
        let mut lines = self.text.lines().enumerate();
        std::iter::from_fn(move || {
            let (line, fence) = lines.find(|(_, line)| line.trim_start().starts_with("```"))?;
            let language = fence.trim_start().trim_start_matches('`').to_owned();
            assert!(!language.is_empty(), "{}:{}: a block without its language", self.name, line + 1);
            let indent = fence.len() - fence.trim_start().len();
            let inside = lines.by_ref().map(|(_, line)| line).take_while(|line| !line.trim_start().starts_with("```"));
            let inside: Vec<_> = inside.map(|line| line.get(indent..).unwrap_or_default()).collect();
            Some(Block { language, line: line + 1, text: inside.join("\n") })
        })
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Markdown of the project.
fn documents() -> Vec<Document> {
    let mut directories = vec![root().to_owned(), root().join("docs"), root().join("examples")];
    let mut documents = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() && directory != root() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                documents.push(Document { name, text: fs::read_to_string(&path).unwrap(), path });
            }
        }
    }
    assert!(documents.iter().any(|document| document.name == "README.md"));
    documents
}

/// A directory with the files that the document shows: those whose first line is `# NAME.toml`, and a certificate.
fn surroundings(document: &Document) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    // Else the machine's own would be read.
    write("mantlet.toml", "");
    for block in document.blocks() {
        if let Some(name) = block.text.lines().next().and_then(|line| line.strip_prefix("# "))
            && (name.ends_with(".toml") || name.ends_with(".yaml"))
            && !name.contains([' ', '/'])
        {
            write(name, &block.text);
        }
    }
    let certificate = rcgen::generate_simple_self_signed(["matrix.example.org".to_owned()]).unwrap();
    for name in ["fullchain.pem", "other.pem", "partners.pem", "internal-ca.pem"] {
        write(name, &certificate.cert.pem());
    }
    for name in ["privkey.pem", "other.key", "federation.secret", "proxy.credentials", "notary.key"] {
        let secret = match name {
            "federation.secret" => "a-secret".to_owned(),
            "proxy.credentials" => "synapse:a password".to_owned(),
            "notary.key" => "ed25519 notary YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1".to_owned(),
            _ => certificate.signing_key.serialize_pem(),
        };
        write(name, &secret);
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    dir
}

fn is_gateway_file(text: &str) -> bool {
    const TABLES: [&str; 11] = [
        "[[listener]]",
        "[upstream.synapse]",
        "[policy]",
        "[admin]",
        "[limits]",
        "[tokens]",
        "[forwarded]",
        "[log]",
        "[workers]",
        "[homeserver]",
        "[egress]",
    ];
    // A policy, too, has a table of that name.
    text.lines().any(|line| TABLES.contains(&line.trim())) && !text.lines().any(|line| line.starts_with("extends"))
}

/// Each `$ command` of a block with the lines that follow it.
fn commands(text: &str) -> Vec<(&str, String)> {
    let parts = text.split("\n$ ").map(|part| part.strip_prefix("$ ").unwrap_or(part));
    parts
        .map(|part| part.split_once('\n').unwrap_or((part, "")))
        .map(|(c, out)| (c, out.trim_end().to_owned()))
        .collect()
}

/// Splits a command line as a shell would, as far as the documents need it: both kinds of quotes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut is_word) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (None, '\'' | '"') => (quote, is_word) = (Some(c), true),
            (Some(open), _) if open == c => quote = None,
            (None, ' ') => {
                if std::mem::take(&mut is_word) {
                    words.push(std::mem::take(&mut word));
                }
            }
            _ => {
                word.push(c);
                is_word = true;
            }
        }
    }
    if is_word {
        words.push(word);
    }
    words
}

/// Whether a text is the expected one, in which `…` stands for anything.
fn is_like(text: &str, expected: &str) -> bool {
    let mut parts = expected.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        match (parts.peek(), rest.find(part)) {
            (None, _) => return rest.ends_with(part),
            (Some(_), Some(at)) => rest = &rest[at + part.len()..],
            (Some(_), None) => return false,
        }
    }
    true
}
