//! Which of many patterns a path matches, at a cost that does not grow with their number.
//!
//! Most patterns that operators write are paths with gaps: `/_matrix/client/(r0|v3)/rooms/[^/]+/send`. Those are found in a tree
//! of segments. What is left is one automaton.

use percent_encoding::percent_decode_str;
use regex::{Error, Regex, RegexSet, RegexSetBuilder};
use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind, Look};

use super::plan::Gate;
use crate::matrix::segment::BySegment;

/// A regular expression over a whole path.
#[derive(Clone, Debug)]
pub struct PathPattern {
    anchored: String,
    /// The paths with gaps that it stands for; `None` if only an automaton can tell.
    shapes: Option<Vec<Shape>>,
}

type Shape = Vec<Segment>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// This one.
    Text(String),
    /// `[^/]+`
    Some,
    /// `[^/]*`
    Any,
}

impl PathPattern {
    /// Reads an operator's pattern; it always has to match the whole path, with or without its own anchors.
    ///
    /// # Errors
    /// What is wrong with the expression.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        let parse = |text: &str| regex_syntax::parse(text).map_err(|error| Error::Syntax(error.to_string()));
        // By itself first: the group around it would hide a parenthesis too many.
        parse(pattern)?;
        let anchored = format!("^(?:{pattern})$");
        let shapes = shapes(&parse(&anchored)?);
        let pattern = Self { anchored, shapes };
        if pattern.shapes.is_none() {
            pattern.automaton()?;
        }
        Ok(pattern)
    }

    /// An automaton for this pattern alone.
    ///
    /// # Errors
    /// It is too large.
    pub fn automaton(&self) -> Result<Regex, Error> {
        Regex::new(&self.anchored)
    }
}

/// The gates that hold for paths instead of endpoints.
#[derive(Clone, Debug, Default)]
pub struct PathGates {
    patterns: Vec<String>,
    gates: Vec<Gate>,
    tree: Tree,
    set: RegexSet,
    /// The gates of the patterns in the set.
    in_set: Vec<usize>,
}

impl PathGates {
    /// Prepares to look all patterns up at once.
    ///
    /// # Errors
    /// Those that need an automaton are too large together.
    pub fn new(all: Vec<(PathPattern, Gate)>) -> Result<Self, Error> {
        let mut made = Self::default();
        let mut expressions = Vec::new();
        for (place, (pattern, gate)) in all.into_iter().enumerate() {
            match pattern.shapes {
                Some(shapes) => shapes.into_iter().for_each(|shape| made.tree.add(shape, place)),
                None => {
                    expressions.push(pattern.anchored.clone());
                    made.in_set.push(place);
                }
            }
            made.patterns.push(pattern.anchored);
            made.gates.push(gate);
        }
        made.set = RegexSetBuilder::new(expressions).size_limit(MOST_BYTES).build()?;
        Ok(made)
    }

    /// The gates whose pattern matches the raw or the decoded path, in the order in which they were written.
    pub fn matching<'p>(&'p self, path: &str) -> impl Iterator<Item = &'p Gate> {
        let mut hits = Vec::new();
        if !self.gates.is_empty() {
            self.find(path, &mut hits);
            // A path that does not decode to text cannot be one that an operator meant: the raw form has been matched.
            if path.contains('%')
                && let Ok(decoded) = percent_decode_str(path).decode_utf8()
            {
                self.find(&decoded, &mut hits);
            }
            hits.sort_unstable();
            hits.dedup();
        }
        hits.into_iter().filter_map(|hit: usize| self.gates.get(hit))
    }

    fn find(&self, path: &str, hits: &mut Vec<usize>) {
        if let Some(rest) = path.strip_prefix('/') {
            self.tree.find(0, Some(rest), hits);
        }
        // Most paths match nothing, and to be told so costs a hundredth of being told of each pattern.
        if !self.in_set.is_empty() && self.set.is_match(path) {
            hits.extend(self.set.matches(path).into_iter().filter_map(|hit| self.in_set.get(hit)));
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Gate)> {
        self.patterns.iter().map(String::as_str).zip(&self.gates)
    }
}

/// Shapes by their segments: a node stands for all that begin alike.
#[derive(Clone, Debug, Default)]
struct Tree(Vec<Node>);

#[derive(Clone, Debug, Default)]
struct Node {
    texts: BySegment<usize>,
    some: Option<usize>,
    any: Option<usize>,
    /// Those that end here.
    ends: Vec<usize>,
}

impl Tree {
    fn add(&mut self, shape: Shape, end: usize) {
        if self.0.is_empty() {
            self.0.push(Node::default());
        }
        let mut at = 0;
        for segment in shape {
            let new = self.0.len();
            let node = &mut self.0[at];
            at = match segment {
                Segment::Text(text) => node.texts.get(text.as_bytes()).unwrap_or_else(|| {
                    node.texts.insert(text.as_bytes(), new);
                    new
                }),
                Segment::Some => *node.some.get_or_insert(new),
                Segment::Any => *node.any.get_or_insert(new),
            };
            if at == new {
                self.0.push(Node::default());
            }
        }
        self.0[at].ends.push(end);
    }

    /// Follows what is left of a path, without the slash before it, from a node on.
    fn find(&self, node: usize, rest: Option<&str>, hits: &mut Vec<usize>) {
        let Some(node) = self.0.get(node) else { return };
        let Some(rest) = rest else { return hits.extend(&node.ends) };
        let (segment, rest) = match rest.bytes().position(|byte| byte == b'/') {
            Some(slash) => (&rest[..slash], Some(&rest[slash + 1..])),
            None => (rest, None),
        };
        let text = node.texts.get(segment.as_bytes());
        let some = node.some.filter(|_| !segment.is_empty());
        for next in text.into_iter().chain(some).chain(node.any) {
            self.find(next, rest, hits);
        }
    }
}

/// A part of a pattern.
#[derive(Clone, Debug)]
enum Piece {
    Start,
    End,
    Text(String),
    Gap(Segment),
}

fn shapes(hir: &Hir) -> Option<Vec<Shape>> {
    pieces(hir)?.iter().map(|way| shape(way)).collect()
}

/// All ways through an expression; `None` if they are many, or no paths with gaps.
fn pieces(hir: &Hir) -> Option<Vec<Vec<Piece>>> {
    let one = |piece| Some(vec![vec![piece]]);
    let ways = match hir.kind() {
        HirKind::Empty => vec![Vec::new()],
        HirKind::Literal(literal) => return one(Piece::Text(std::str::from_utf8(&literal.0).ok()?.to_owned())),
        HirKind::Look(Look::Start) => return one(Piece::Start),
        HirKind::Look(Look::End) => return one(Piece::End),
        HirKind::Look(_) => return None,
        HirKind::Capture(capture) => return pieces(&capture.sub),
        HirKind::Class(class) => characters(class)?.map(|one| vec![Piece::Text(one.to_string())]).collect(),
        HirKind::Repetition(repetition) => match (repetition.min, repetition.max) {
            (0, None) if is_no_slash(&repetition.sub) => return one(Piece::Gap(Segment::Any)),
            (1, None) if is_no_slash(&repetition.sub) => return one(Piece::Gap(Segment::Some)),
            (0, Some(1)) => [vec![Vec::new()], pieces(&repetition.sub)?].concat(),
            _ => return None,
        },
        HirKind::Alternation(parts) => parts.iter().map(pieces).collect::<Option<Vec<_>>>()?.concat(),
        HirKind::Concat(parts) => {
            let mut ways = vec![Vec::new()];
            for part in parts {
                let next = pieces(part)?;
                if ways.len() * next.len() > MOST_WAYS {
                    return None;
                }
                let longer = |way: &Vec<Piece>| next.iter().map(|next| [&way[..], next].concat()).collect::<Vec<_>>();
                ways = ways.iter().flat_map(longer).collect();
            }
            ways
        }
    };
    (ways.len() <= MOST_WAYS).then_some(ways)
}

fn characters(class: &Class) -> Option<impl Iterator<Item = char> + '_> {
    let Class::Unicode(class) = class else { return None };
    let count: usize = class.iter().map(ClassUnicodeRange::len).sum();
    (count <= MOST_WAYS).then(|| class.iter().flat_map(|range| range.start()..=range.end()))
}

fn is_no_slash(hir: &Hir) -> bool {
    let mut no_slash = ClassUnicode::new([ClassUnicodeRange::new('/', '/')]);
    no_slash.negate();
    matches!(hir.kind(), HirKind::Class(Class::Unicode(class)) if *class == no_slash)
}

/// One way as segments, if every gap is a whole one.
fn shape(way: &[Piece]) -> Option<Shape> {
    let begin = way.iter().position(|piece| !matches!(piece, Piece::Start))?;
    let end = way.iter().rposition(|piece| !matches!(piece, Piece::End))?;
    let mut segments = Vec::new();
    let mut last = Segment::Text(String::new());
    for piece in way.get(begin..=end)? {
        match piece {
            Piece::Start | Piece::End => return None,
            Piece::Gap(gap) if last == Segment::Text(String::new()) => last = gap.clone(),
            Piece::Gap(_) => return None,
            Piece::Text(text) => {
                for (place, part) in text.split('/').enumerate() {
                    if place > 0 {
                        segments.push(std::mem::replace(&mut last, Segment::Text(String::new())));
                    }
                    match &mut last {
                        Segment::Text(text) => text.push_str(part),
                        Segment::Some | Segment::Any if part.is_empty() => {}
                        Segment::Some | Segment::Any => return None,
                    }
                }
            }
        }
    }
    segments.push(last);
    // Before the first slash of a path there is nothing.
    (segments.len() > 1 && segments.remove(0) == Segment::Text(String::new())).then_some(segments)
}

/// Ways through one pattern that are written out; more are left to the automaton.
const MOST_WAYS: usize = 64;

/// What the automaton of all other patterns may take: enough for ten thousand.
const MOST_BYTES: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn is_shaped(pattern: &str) -> bool {
        PathPattern::new(pattern).unwrap().shapes.is_some()
    }

    #[test]
    fn paths_with_gaps_need_no_automaton() {
        for pattern in [
            "/_matrix/client/versions",
            "^/_matrix/client/(r0|v3|unstable)/rooms/[^/]+/send/[^/]*$",
            "/_matrix/client/v[13]/register/?",
            "/_matrix/client/(?P<version>r0|v3)/(login|logout(/all)?)",
            r"/\.well\-known/matrix/(client|server)",
        ] {
            assert!(is_shaped(pattern), "{pattern}");
        }
        for pattern in
            [".*", "/a.b", "/a/.*", "/@[^/]+/b", "(?i)/register", "/[^/]+:[^/]+", "/[a-z]+", "a", r"/a\b", ""]
        {
            assert!(!is_shaped(pattern), "{pattern}");
        }
        assert!(!is_shaped(&"(a|b|c|d)".repeat(4)), "too many ways");
        for wrong in ["(", "a)|(b", "[", "*"] {
            assert!(PathPattern::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_tree_and_an_automaton_find_the_same() {
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize % below
        };
        let parts =
            ["a", "b", "", "(a|b)", "(a|b/a)?", "[^/]+", "[^/]*", "[ab]", "a[^/]+", "a?", "(/a)?", "\u{e9}", "^", "$"];
        let words = ["a", "b", "", "ab", "aa", "\u{e9}", "\n", "c"];
        let mut found = 0;
        for _ in 0..3000 {
            let pattern: String = (0..=random(4)).map(|_| format!("/{}", parts[random(parts.len())])).collect();
            let pattern = PathPattern::new(&pattern).unwrap();
            let Some(shapes) = pattern.shapes.clone() else { continue };
            let mut tree = Tree::default();
            shapes.into_iter().for_each(|shape| tree.add(shape, 7));
            let automaton = pattern.automaton().unwrap();
            for _ in 0..40 {
                let path: String = (0..=random(4)).map(|_| format!("/{}", words[random(words.len())])).collect();
                let mut hits = Vec::new();
                tree.find(0, path.get(1..), &mut hits);
                assert_eq!(!hits.is_empty(), automaton.is_match(&path), "{path:?} by {}", pattern.anchored);
                found += hits.len();
            }
        }
        assert!(found > 2000, "{found}");
    }
}
