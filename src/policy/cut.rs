//! Fields that may be taken out of the bytes of a request before anything is made of them.
//!
//! To read a field into a map and to take it out again costs more than to pass it on. So whatever the policy removes of every
//! request that comes in, whoever sends it and whatever for, need not be read at all. What is cut is a saving and nothing else:
//! the edits of the policy remain, for HTTP/2, for heads that come in pieces, and for everything that is not cut.

use super::Mode;
use super::edit::{FieldSet, HeadEdit};
use super::plan::Edit;
use crate::message::hop::HOP_BY_HOP;

/// What may be cut.
#[derive(Clone, Debug)]
pub enum Cut {
    /// These.
    These(FieldSet),
    /// All but these.
    AllBut(FieldSet),
}

impl Cut {
    /// What these lists of edits, one for each flow, all remove; `None` where that is nothing, or not only edits that act would
    /// see it.
    pub(super) fn of(flows: &[&[Edit]]) -> Option<Self> {
        let (first, others) = flows.split_first()?;
        // What a rule that only tells would have removed is told by what it finds.
        if flows.iter().any(|edits| edits.iter().any(|edit| edit.mode == Mode::Report)) {
            return None;
        }
        let removals = first.iter().filter(|edit| acts(edit)).map(|edit| &edit.edit);
        let everywhere = |cut: &&HeadEdit| {
            others.iter().all(|edits| edits.iter().any(|edit| acts(edit) && is_same_removal(&edit.edit, cut)))
        };
        removals.filter(everywhere).find_map(Self::by)
    }

    /// Whether a field of this name, in lower case, is one.
    pub fn takes(&self, name: &[u8]) -> bool {
        match self {
            Self::These(set) => set.contains_text(name),
            Self::AllBut(set) => !set.contains_text(name),
        }
    }

    fn by(removal: &HeadEdit) -> Option<Self> {
        let is_read_here = |pattern: &String| read_here().any(|read| overlap(pattern, read));
        match removal {
            HeadEdit::Strip(set) => {
                let these: Vec<_> = set.patterns().filter(|pattern| !is_read_here(pattern)).collect();
                FieldSet::new(these.iter().map(String::as_str)).ok().map(Self::These)
            }
            HeadEdit::KeepOnly(set) => {
                let kept: Vec<_> = set.patterns().collect();
                let names = kept.iter().map(String::as_str).chain(read_here());
                FieldSet::new(names).ok().map(Self::AllBut)
            }
            HeadEdit::ClassifyAgent | HeadEdit::Product | HeadEdit::NeutralPreview | HeadEdit::Set(..) => None,
        }
    }
}

/// Whether some name is in both: each is a name, or a beginning with `*` behind it.
fn overlap(one: &str, other: &str) -> bool {
    match (one.strip_suffix('*'), other.strip_suffix('*')) {
        (None, None) => one == other,
        (Some(begin), None) => other.starts_with(begin),
        (None, Some(begin)) => one.starts_with(begin),
        (Some(one), Some(other)) => one.starts_with(other) || other.starts_with(one),
    }
}

fn acts(edit: &Edit) -> bool {
    edit.mode == Mode::Enforce
}

fn is_same_removal(one: &HeadEdit, other: &HeadEdit) -> bool {
    match (one, other) {
        (HeadEdit::Strip(one), HeadEdit::Strip(other)) | (HeadEdit::KeepOnly(one), HeadEdit::KeepOnly(other)) => {
            one == other
        }
        _ => false,
    }
}

/// What the library or the chain reads before the policy's edits are made.
fn read_here<'a>() -> impl Iterator<Item = &'a str> {
    let all: [&'a str; HOP_BY_HOP.len()] = HOP_BY_HOP;
    all.into_iter().chain(READ_HERE)
}

/// Besides what ends at this hop: framing, host, token, and whom a trusted hop names.
const READ_HERE: [&str; 7] =
    ["authorization", "content-length", "content-type", "cookie", "host", "http2-settings", "x-forwarded-*"];

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::policy::RuleIndex;

    fn strip(names: &[&str]) -> HeadEdit {
        HeadEdit::Strip(Arc::new(FieldSet::new(names.iter().copied()).unwrap()))
    }

    fn edit(mode: Mode, edit: HeadEdit) -> Edit {
        Edit { rule: RuleIndex::SURFACE, mode, location: None, edit }
    }

    fn cut(lists: [&[Edit]; 2]) -> Option<Cut> {
        Cut::of(&lists)
    }

    #[test]
    fn names_are_taken_and_beginnings_of_names() {
        let edits = [edit(Mode::Enforce, strip(&["origin", "sec-*"]))];
        let cut = cut([&edits, &edits]).unwrap();
        for name in ["origin", "sec-fetch-site", "sec-ch-ua", "sec-"] {
            assert!(cut.takes(name.as_bytes()), "{name}");
        }
        for name in ["origi", "origins", "o", "", "section", "x-origin", "\u{6f}\0rigin"] {
            assert!(!cut.takes(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn an_allow_list_takes_the_rest_but_what_is_read_here() {
        let edits = [edit(Mode::Enforce, HeadEdit::KeepOnly(Arc::new(FieldSet::new(["accept"]).unwrap())))];
        let cut = cut([&edits, &edits]).unwrap();
        assert!(cut.takes(b"x-custom") && cut.takes(b"origin"));
        for name in read_here().chain(["accept", "x-forwarded-for", "x-forwarded-proto"]) {
            assert!(!cut.takes(name.replace('*', "a").as_bytes()), "{name}");
        }
    }

    #[test]
    fn what_is_read_here_is_left_even_where_it_is_removed() {
        let edits = [edit(Mode::Enforce, strip(&["host", "x-*", "connection*", "x-forwarded-host", "te", "ted"]))];
        let cut = cut([&edits, &edits]).unwrap();
        for name in ["host", "x-forwarded-for", "x-custom", "connection", "connections", "x-forwarded-host", "te"] {
            assert!(!cut.takes(name.as_bytes()), "{name}");
        }
        assert!(cut.takes(b"ted"));
    }

    #[test]
    fn only_what_is_removed_in_every_flow_by_rules_that_act_is_taken() {
        let (acts, tells) = ([edit(Mode::Enforce, strip(&["origin"]))], [edit(Mode::Report, strip(&["origin"]))]);
        let other = [edit(Mode::Enforce, strip(&["origin", "via"]))];
        let keeps = [edit(Mode::Enforce, HeadEdit::ClassifyAgent)];
        assert!(cut([&acts, &acts]).is_some());
        for (one, two) in [(&acts, &tells), (&tells, &tells), (&acts, &other), (&acts, &keeps), (&keeps, &keeps)] {
            assert!(cut([one, two]).is_none(), "{one:?} {two:?}");
            assert!(cut([two, one]).is_none(), "{two:?} {one:?}");
        }
        // One that tells of something else would not find it either.
        let both = [edit(Mode::Enforce, strip(&["origin"])), edit(Mode::Report, HeadEdit::ClassifyAgent)];
        assert!(cut([&both, &both]).is_none());
        let both = [edit(Mode::Enforce, HeadEdit::ClassifyAgent), edit(Mode::Enforce, strip(&["via"]))];
        assert!(cut([&both, &both]).unwrap().takes(b"via"));
    }
}
