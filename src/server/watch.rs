//! Notices that files changed: the policy's, or the certificates'.
//!
//! It looks at them twice a second, through links: so it sees an editor's rename, a Kubernetes ConfigMap that swaps its `..data`
//! link, and a file on a network disk, which no notification tells of. A file that is still being written is left alone until it
//! looks the same twice.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

/// What a file looks like from outside; `None` if it is not there.
type Look = Option<(u64, u64, i64, i64, u64)>;

/// Watches a set of files.
#[derive(Debug)]
pub(super) struct Watch {
    known: Vec<(PathBuf, Look)>,
    last: Vec<Look>,
}

impl Watch {
    /// Watches these files, as they are now.
    pub(super) fn new(files: Vec<PathBuf>) -> Self {
        let known: Vec<_> = files.into_iter().map(|file| (file.clone(), look(&file))).collect();
        let last = known.iter().map(|(_, look)| *look).collect();
        Self { known, last }
    }

    /// Watches these files instead. One that is new here counts as changed: it was read before anybody looked at it, and may have
    /// changed in between.
    pub(super) fn follow(&mut self, files: Vec<PathBuf>) {
        let before = std::mem::take(&mut self.known);
        let known = |file: &PathBuf| before.iter().find(|(old, _)| old == file).and_then(|(_, look)| *look);
        self.known = files.into_iter().map(|file| (file.clone(), known(&file))).collect();
        self.last = vec![None; self.known.len()];
    }

    /// Whether they changed since they were last known, and rest now. Once told, the change is known.
    pub(super) fn changed(&mut self) -> bool {
        let now: Vec<Look> = self.known.iter().map(|(file, _)| look(file)).collect();
        let rests = now == self.last;
        let is_new = self.known.iter().zip(&now).any(|((_, known), now)| known != now);
        self.last.clone_from(&now);
        if !rests || !is_new {
            return false;
        }
        for ((_, known), now) in self.known.iter_mut().zip(now) {
            *known = now;
        }
        true
    }
}

fn look(file: &PathBuf) -> Look {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size()))
}

/// How often files are looked at.
pub(super) const EVERY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    fn twice(watch: &mut Watch) -> bool {
        let first = watch.changed();
        watch.changed() || first
    }

    #[test]
    fn a_change_is_told_once_and_only_when_it_rests() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.toml");
        std::fs::write(&file, "a").unwrap();
        let mut watch = Watch::new(vec![file.clone()]);
        assert!(!twice(&mut watch));
        std::fs::write(&file, "a longer text").unwrap();
        assert!(!watch.changed(), "it may still be written to");
        std::fs::write(&file, "a longer text still").unwrap();
        assert!(!watch.changed(), "it was written to");
        assert!(watch.changed());
        assert!(!twice(&mut watch));
    }

    #[test]
    fn a_file_that_joins_counts_as_changed_and_one_that_stays_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        std::fs::write(&one, "1").unwrap();
        std::fs::write(&two, "2").unwrap();
        let mut watch = Watch::new(vec![one.clone()]);
        watch.follow(vec![one.clone(), two.clone()]);
        assert!(twice(&mut watch) && !twice(&mut watch));
        watch.follow(vec![two.clone()]);
        assert!(!twice(&mut watch));
        // What changes between the reading and the following is not lost.
        std::fs::write(&two, "changed").unwrap();
        watch.follow(vec![two.clone(), one]);
        assert!(twice(&mut watch));
    }

    #[test]
    fn a_rename_over_the_file_and_a_swapped_link_are_changes() {
        let dir = tempfile::tempdir().unwrap();
        for version in ["one", "two"] {
            std::fs::create_dir(dir.path().join(version)).unwrap();
            std::fs::write(dir.path().join(version).join("policy.toml"), version).unwrap();
        }
        std::os::unix::fs::symlink("one", dir.path().join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/policy.toml", dir.path().join("policy.toml")).unwrap();
        let mut watch = Watch::new(vec![dir.path().join("policy.toml")]);
        std::os::unix::fs::symlink("two", dir.path().join("..tmp")).unwrap();
        std::fs::rename(dir.path().join("..tmp"), dir.path().join("..data")).unwrap();
        assert!(twice(&mut watch));
        std::fs::write(dir.path().join("new"), "one").unwrap();
        std::fs::rename(dir.path().join("new"), dir.path().join("two/policy.toml")).unwrap();
        assert!(twice(&mut watch));
    }
}
