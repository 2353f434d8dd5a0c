//! `homeserver.yaml`, and what stands beside it: several files are one, as for Synapse.

use std::path::{Path, PathBuf};

use super::yaml::{self, Map, Node, Value};
use crate::document::read_file;
use crate::problem::{Problem, Problems};

/// What Synapse is told, by all of its files. Most of it may be secret.
pub struct Homeserver {
    entries: Map,
    /// The name of the first file, for what stands in none.
    name: String,
    /// Where the first file is.
    directory: PathBuf,
}

impl Homeserver {
    /// Reads files, and of directories what ends in `.yaml`; what a later one says counts.
    ///
    /// # Errors
    /// All files that cannot be read.
    pub fn load(paths: &[PathBuf]) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let mut entries = Map::default();
        let mut files = Vec::new();
        for path in paths {
            match in_directory(path) {
                Ok(found) => files.extend(found),
                Err(problem) => problems.push(problem),
            }
        }
        for path in &files {
            match read_map(path) {
                Ok(map) => entries.extend(map),
                Err(problem) => problems.push(problem),
            }
        }
        let first = files.first().cloned().unwrap_or_default();
        let directory = first.parent().unwrap_or(Path::new("")).to_path_buf();
        problems.or(Self { entries, name: first.display().to_string(), directory })
    }

    /// The value of a key; `None` for one that says nothing.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries.get(key)
    }

    /// A key and its value, which may say nothing.
    pub fn entry(&self, key: &str) -> Option<(&Node, &Node)> {
        self.entries.entry(key)
    }

    /// What each file says of a key, where each speaks for a process of its own.
    pub fn of_each_file(&self, key: &str) -> Vec<&Node> {
        let mut values: Vec<&Node> = Vec::new();
        for (_, value) in self.entries.iter().filter(|(known, _)| known.as_str() == Some(key)) {
            // Within a file the last one counts.
            values.retain(|before| before.location.file != value.location.file);
            values.push(value);
        }
        values
    }

    /// The name of the first file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its own name, if it says one.
    pub fn server_name(&self) -> Option<&str> {
        self.get("server_name")?.as_str()
    }

    /// Where a file is that is named in it: Synapse looks from where it was started, which is mostly beside its files.
    pub fn file(&self, name: &str) -> PathBuf {
        let path = Path::new(name);
        if path.is_absolute() || path.exists() { path.to_path_buf() } else { self.directory.join(path) }
    }

    /// The registrations in `app_service_config_files`, each with the place where it is named.
    pub fn app_services(&self) -> Vec<(&Node, Result<Map, Problem>)> {
        let files = self.get("app_service_config_files").and_then(Node::as_list).unwrap_or_default();
        let named = files.iter().filter_map(|node| Some((node, node.as_str()?)));
        named.map(|(node, name)| (node, read_map(&self.file(name)))).collect()
    }
}

fn in_directory(path: &Path) -> Result<Vec<PathBuf>, Problem> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let unreadable = |error| Problem::new(format!("{} cannot be read: {error}", path.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        if file.is_file() && file.extension().is_some_and(|extension| extension == "yaml") {
            files.push(file);
        }
    }
    files.sort();
    match files.is_empty() {
        true => Err(Problem::new(format!("{} holds no .yaml file", path.display()))),
        false => Ok(files),
    }
}

fn read_map(path: &Path) -> Result<Map, Problem> {
    let name = path.display().to_string();
    let text = read_file(path)?;
    match yaml::parse(&name, &text)?.value {
        Value::Map(map) => Ok(map),
        Value::Null => Ok(Map::default()),
        Value::Boolean(_) | Value::Integer(_) | Value::Text(_) | Value::List(_) => {
            Err(Problem::new(format!("{name} is no configuration: it holds no `key: value`")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_files_are_one_and_the_later_counts() {
        let dir = tempfile::tempdir().unwrap();
        let more = dir.path().join("conf.d");
        std::fs::create_dir(&more).unwrap();
        let write = |path: &Path, text: &str| std::fs::write(path, text).unwrap();
        let first = dir.path().join("homeserver.yaml");
        write(&first, "server_name: one.test\nreport_stats: true\n");
        write(&more.join("b.yaml"), "server_name: three.test\n");
        write(&more.join("a.yaml"), "server_name: two.test\nlisteners: []\n");
        write(&more.join("empty.yaml"), "# nothing\n");
        write(&more.join("c.txt"), "server_name: four.test\n");
        let read = Homeserver::load(&[first, more]).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(read.server_name(), Some("three.test"));
        assert!(read.get("report_stats").unwrap().is_true() && read.get("listeners").is_some());
        assert!(read.get("server_name").unwrap().location.file.ends_with("conf.d/b.yaml"));
    }

    #[test]
    fn what_cannot_be_read_is_told_in_one_line_each() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("list.yaml");
        std::fs::write(&list, "- hidden\n").unwrap();
        let empty = dir.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        let told = |path: &Path| Homeserver::load(&[path.to_path_buf()]).map(drop).unwrap_err().to_string();
        assert!(told(&dir.path().join("gone.yaml")).ends_with("gone.yaml does not exist"));
        assert!(told(&empty).ends_with("holds no .yaml file"));
        let told = told(&list);
        assert!(told.ends_with("holds no `key: value`") && !told.contains("hidden"), "{told}");
    }
}
