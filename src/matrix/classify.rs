//! From a path, exactly as on the wire, to its endpoint.
//!
//! Synapse has two dispatchers. The one walks a tree of resources along percent-decoded segments, collapsing slashes
//! at the front; the other matches regular expressions on the raw path. So a path is classified twice, as it is spelled
//! and decoded once: whatever Synapse serves is found by one of both, and whoever writes to slip past a rule makes the
//! two disagree.

use std::borrow::Cow;
use std::sync::LazyLock;

use http::Method;
use memchr::memchr;

use super::Flow;
use super::endpoint::{Api, Endpoint};
use super::segment::BySegment;

/// What a path asks for by its spelling, and what it asks for once decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classified {
    /// The endpoint of the path byte for byte.
    pub raw: Endpoint,
    /// The endpoint of the path with each segment percent-decoded once and the slashes at its front collapsed. Equal to
    /// `raw` for every honest request: only variable segments need escapes.
    pub decoded: Endpoint,
}

/// Finds the endpoint of a path, which is without its query.
///
/// Methods are the homeserver's: HEAD is GET, and OPTIONS is a preflight wherever it would answer one. A path that is
/// known under other methods only is its GET endpoint or else its first, so that an odd method never evades a rule.
/// Only a path with escapes costs an allocation.
pub fn classify(method: &Method, path: &str) -> Classified {
    let raw = find(method, path.as_bytes());
    let decoded = match decode(path.as_bytes()) {
        Cow::Borrowed(same) if same.len() == path.len() => raw,
        decoded => find(method, &decoded),
    };
    Classified { raw, decoded }
}

/// Tells in which direction a request for this path passes: other servers ask below `/_matrix/federation` and
/// `/_matrix/key`, in any spelling, and clients ask all else.
pub fn flow(path: &str) -> Flow {
    // What most ask for is told by this alone.
    if path.starts_with("/_matrix/client/") {
        return Flow::Client;
    }
    let path = decode(path.as_bytes());
    let mut segments = segments(&path);
    match (segments.next(), segments.next()) {
        (Some(b"_matrix"), Some(b"federation" | b"key")) => Flow::Federation,
        _ => Flow::Client,
    }
}

/// Finds the endpoint of an identity server whose path stands at the end of a text, whatever stands before it.
pub fn identity_behind(method: &Method, text: &str) -> Option<Endpoint> {
    let found = find(method, &text.as_bytes()[text.rfind(IDENTITY)?..]);
    (found.api() == Api::Identity).then_some(found)
}

fn find(method: &Method, path: &[u8]) -> Endpoint {
    if method == Method::OPTIONS && unknown(path) != Endpoint::Unserved {
        return Endpoint::Preflight;
    }
    let Some(rest) = path.strip_prefix(b"/") else {
        return Endpoint::Unserved;
    };
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    let mut odd = None;
    TRIE.find(0, Some(rest), method, &mut odd).or(odd).unwrap_or_else(|| unknown(path))
}

/// Names what no line of the table does. The prefixes here are those which the gateway serves.
fn unknown(path: &[u8]) -> Endpoint {
    let mut segments = segments(path);
    match (segments.next(), segments.next()) {
        (Some(b"_matrix"), Some(b"federation")) => Endpoint::UnknownFederation,
        (Some(b"_matrix"), Some(b"key")) => Endpoint::UnknownKey,
        (Some(b"_matrix"), Some(b"media")) => Endpoint::UnknownMedia,
        (Some(b"_matrix"), Some(b"identity")) => Endpoint::UnknownIdentity,
        (Some(b"_matrix"), _) => Endpoint::UnknownClient,
        (Some(b"_synapse"), Some(b"client")) => Endpoint::UnknownSynapse,
        (Some(b".well-known"), Some(b"matrix")) => Endpoint::UnknownWellKnown,
        // Synapse writes this path behind whatever an `id_server` holds, which may be a path of its own.
        _ if UNBIND.iter().any(|suffix| path.ends_with(suffix)) => Endpoint::IdentityUnbind,
        _ => Endpoint::Unserved,
    }
}

const IDENTITY: &str = "/_matrix/identity/";
const UNBIND: [&[u8]; 2] = [b"/_matrix/identity/v2/3pid/unbind", b"/_matrix/identity/api/v1/3pid/unbind"];

/// The segments of a path that begins with one slash; none of any other.
fn segments(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.strip_prefix(b"/").into_iter().flat_map(|rest| rest.split(|byte| *byte == b'/'))
}

/// Collapses the slashes at the front and undoes each escape once. Like Python's `unquote`, it leaves a malformed
/// escape as it is. An escaped slash does not end a segment in Synapse, so it becomes a NUL, which no literal has.
fn decode(path: &[u8]) -> Cow<'_, [u8]> {
    let slashes = path.iter().take_while(|byte| **byte == b'/').count();
    let path = &path[slashes.saturating_sub(1)..];
    let Some(mut escape) = memchr(b'%', path) else {
        return Cow::Borrowed(path);
    };
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    loop {
        decoded.extend_from_slice(&rest[..escape]);
        rest = &rest[escape..];
        let (byte, length) = match rest {
            [_, high, low, ..] => match hex(*high).zip(hex(*low)) {
                Some((2, 15)) => (0, 3),
                Some((high, low)) => (high << 4 | low, 3),
                None => (b'%', 1),
            },
            _ => (b'%', 1),
        };
        decoded.push(byte);
        rest = &rest[length..];
        match memchr(b'%', rest) {
            Some(next) => escape = next,
            None => break,
        }
    }
    decoded.extend_from_slice(rest);
    Cow::Owned(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

static TRIE: LazyLock<Trie> = LazyLock::new(Trie::new);

/// All path forms of the table, segment by segment. The first node is the root.
struct Trie {
    nodes: Vec<Node>,
}

#[derive(Default)]
struct Node {
    /// Children by their segment.
    literals: BySegment<usize>,
    /// Those of them whose dots Synapse's regular expressions leave unescaped.
    dotted: Vec<(Box<[u8]>, usize)>,
    /// The child of any segment, also an empty one.
    variable: Option<usize>,
    /// What a path that ends here asks for, in the order of the table.
    here: Vec<Endpoint>,
    /// What any path that goes on from here asks for.
    below: Vec<Endpoint>,
}

impl Trie {
    /// Finds the endpoint of what is left of a path below this node: literal before variable before catch-all. Where
    /// the path fits and the method does not, the best of these is left in `odd` and the search goes on.
    fn find(&self, node: usize, rest: Option<&[u8]>, method: &str, odd: &mut Option<Endpoint>) -> Option<Endpoint> {
        let node = &self.nodes[node];
        let Some(rest) = rest else {
            return choose(&node.here, method, odd);
        };
        // Segments are short: to look at each byte is quicker than to prepare to look at many at once.
        let (segment, after) = match rest.iter().position(|byte| *byte == b'/') {
            Some(slash) => (&rest[..slash], Some(&rest[slash + 1..])),
            None => (rest, None),
        };
        if let Some(child) = node.literals.get(segment)
            && let Some(endpoint) = self.find(child, after, method, odd)
        {
            return Some(endpoint);
        }
        for (literal, child) in &node.dotted {
            if let Some(after) = strip_dotted(literal, rest)
                && let Some(endpoint) = self.find(*child, after, method, odd)
            {
                return Some(endpoint);
            }
        }
        if let Some(child) = node.variable
            && let Some(endpoint) = self.find(child, after, method, odd)
        {
            return Some(endpoint);
        }
        choose(&node.below, method, odd)
    }

    fn new() -> Trie {
        let mut trie = Trie { nodes: vec![Node::default()] };
        for endpoint in Endpoint::ALL.iter().copied() {
            for path in endpoint.forms().iter().flat_map(|form| form.paths()) {
                trie.insert(endpoint, &path);
            }
        }
        trie
    }

    fn insert(&mut self, endpoint: Endpoint, path: &str) {
        let mut node = 0;
        for segment in path.trim_start_matches('/').split('/') {
            if segment.starts_with("{*") {
                self.nodes[node].below.push(endpoint);
                return;
            }
            node = self.child(node, segment, matches!(endpoint.api(), Api::Client | Api::Federation));
        }
        self.nodes[node].here.push(endpoint);
    }

    fn child(&mut self, parent: usize, segment: &str, by_regex: bool) -> usize {
        let known = match segment.starts_with('{') {
            true => self.nodes[parent].variable,
            false => self.nodes[parent].literals.get(segment.as_bytes()),
        };
        if let Some(child) = known {
            return child;
        }
        let child = self.nodes.len();
        self.nodes.push(Node::default());
        let parent = &mut self.nodes[parent];
        if segment.starts_with('{') {
            parent.variable = Some(child);
            return child;
        }
        parent.literals.insert(segment.as_bytes(), child);
        if by_regex && segment.contains('.') {
            parent.dotted.push((segment.as_bytes().into(), child));
        }
        child
    }
}

fn choose(endpoints: &[Endpoint], method: &str, odd: &mut Option<Endpoint>) -> Option<Endpoint> {
    let serves = |method: &str| endpoints.iter().copied().find(|endpoint| endpoint.methods().contains(&method));
    let found = serves(method);
    if found.is_none() && odd.is_none() {
        *odd = serves("GET").or(endpoints.first().copied());
    }
    found
}

/// Strips a literal in which a dot stands for any byte, and gives what follows its slash: many of Synapse's regular
/// expressions have unescaped dots, which match slashes, too. We take all dots so, also the few that are escaped.
fn strip_dotted<'a>(literal: &[u8], rest: &'a [u8]) -> Option<Option<&'a [u8]>> {
    let (head, tail) = rest.split_at_checked(literal.len())?;
    if !literal.iter().zip(head).all(|(want, got)| want == got || *want == b'.') {
        return None;
    }
    match tail {
        [] => Some(None),
        [b'/', after @ ..] => Some(Some(after)),
        _ => None,
    }
}

#[cfg(test)]
mod routes;

#[cfg(test)]
mod tests;
