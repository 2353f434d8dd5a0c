//! From a path, exactly as on the wire, to its endpoint.
//!
//! Synapse has two dispatchers. The one walks a tree of resources along percent-decoded segments, collapsing slashes
//! at the front; the other matches regular expressions on the raw path. So a path is classified twice, as it is spelled
//! and decoded once: whatever Synapse serves is found by one of both, and whoever writes to slip past a rule makes the
//! two disagree.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::LazyLock;

use http::Method;
use memchr::memchr;

use super::Flow;
use super::endpoint::{Api, Endpoint};

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
    let path = decode(path.as_bytes());
    let mut segments = segments(&path);
    match (segments.next(), segments.next()) {
        (Some(b"_matrix"), Some(b"federation" | b"key")) => Flow::Federation,
        _ => Flow::Client,
    }
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
    /// Children by their segment, sorted `by_length`.
    literals: Vec<(Box<[u8]>, usize)>,
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
        let (segment, after) = match memchr(b'/', rest) {
            Some(slash) => (&rest[..slash], Some(&rest[slash + 1..])),
            None => (rest, None),
        };
        if let Ok(found) = node.literals.binary_search_by(|(literal, _)| by_length(literal, segment))
            && let Some(endpoint) = self.find(node.literals[found].1, after, method, odd)
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
        for node in &mut trie.nodes {
            node.literals.sort_by(|(one, _), (other, _)| by_length(one, other));
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
            false => self.nodes[parent].literals.iter().find(|(l, _)| **l == *segment.as_bytes()).map(|(_, c)| *c),
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
        parent.literals.push((segment.as_bytes().into(), child));
        if by_regex && segment.contains('.') {
            parent.dotted.push((segment.as_bytes().into(), child));
        }
        child
    }
}

/// The order of literals: length first, so that few comparisons look at the bytes.
fn by_length(one: &[u8], other: &[u8]) -> Ordering {
    one.len().cmp(&other.len()).then_with(|| one.cmp(other))
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
mod tests {
    use super::*;

    /// Classifies a path whose two readings must agree.
    fn honest(method: &str, path: &str) -> Endpoint {
        let Classified { raw, decoded } = both(method, path);
        assert_eq!(raw, decoded, "{method} {path}");
        raw
    }

    fn both(method: &str, path: &str) -> Classified {
        classify(&Method::from_bytes(method.as_bytes()).unwrap(), path)
    }

    fn split(raw: Endpoint, decoded: Endpoint) -> Classified {
        Classified { raw, decoded }
    }

    #[test]
    fn every_version_prefix_of_public_rooms_is_public_rooms() {
        for version in ["api/v1", "r0", "v3", "unstable"] {
            let path = format!("/_matrix/client/{version}/publicRooms");
            assert_eq!(honest("GET", &path), Endpoint::GetPublicRooms);
            assert_eq!(honest("HEAD", &path), Endpoint::GetPublicRooms);
            assert_eq!(honest("POST", &path), Endpoint::GetPublicRoomsFiltered);
        }
        assert_eq!(honest("GET", "/_matrix/client/v1/publicRooms"), Endpoint::UnknownClient);
        assert_eq!(honest("GET", "/_matrix/federation/v1/publicRooms"), Endpoint::FederationGetPublicRooms);
        assert_eq!(honest("POST", "/_matrix/federation/v1/publicRooms"), Endpoint::FederationGetPublicRoomsFiltered);
    }

    #[test]
    fn an_odd_method_evades_no_rule() {
        for method in ["get", "PATCH", "TRACE", "DELETE", "BREW"] {
            assert_eq!(honest(method, "/_matrix/client/v3/publicRooms"), Endpoint::GetPublicRooms);
            assert_eq!(honest(method, "/_matrix/client/v3/account/3pid/unbind"), Endpoint::ThreepidUnbind);
        }
        assert_eq!(honest("HEAD", "/_matrix/client/v3/account/3pid/unbind"), Endpoint::ThreepidUnbind);
        assert_eq!(honest("POST", "/_matrix/client/v3/profile/@a:b/displayname"), Endpoint::GetDisplayName);
        for method in ["GET", "HEAD"] {
            assert_eq!(honest(method, "/_synapse/admin/v1/deactivate/@a:b"), Endpoint::SynapseAdmin);
        }
        assert_eq!(honest("POST", "/_matrix/key/v2/query/example.org"), Endpoint::KeyGetRemoteServerKeys);
    }

    #[test]
    fn options_is_a_preflight_wherever_the_gateway_serves() {
        for path in ["/_matrix/client/v3/sync", "/_matrix/nothing", "/_synapse/client/x", "/.well-known/matrix/client"]
        {
            assert_eq!(honest("OPTIONS", path), Endpoint::Preflight, "{path}");
        }
        assert_eq!(honest("OPTIONS", "/index.html"), Endpoint::Unserved);
        assert_eq!(honest("OPTIONS", "*"), Endpoint::Unserved);
        assert_eq!(honest("OPTIONS", "/_synapse/metrics"), Endpoint::SynapseMetrics);
        assert_eq!(honest("OPTIONS", "/_synapse/admin/v2/users"), Endpoint::SynapseAdminUsers);
    }

    #[test]
    fn what_synapse_does_not_fold_is_not_folded() {
        for path in [
            "/_matrix/client/v3/publicRooms/",
            "/_matrix//client/v3/publicRooms",
            "/_matrix/client/v3/./publicRooms",
            "/_matrix/client/v3/x/../publicRooms",
            "/_matrix/client/v3/publicRooms;a",
            "/_matrix/client/v3/publicRooms%00",
            "/_matrix/client/v3/publicRooms%0A",
            "/_matrix/client/v3/PublicRooms",
            "/_matrix/client/v3\\publicRooms",
            "/_matrix/client/v3/publicRooms%",
            "/_matrix/client/v3/public%5",
            "/_matrix/client/v3/public%zzooms",
            "/_matrix/client/v3%2FpublicRooms",
            "/_matrix/client%2Fv3/publicRooms",
        ] {
            assert!(honest("GET", path).is_unknown(), "{path}");
        }
        assert_eq!(honest("GET", "/_MATRIX/client/v3/publicRooms"), Endpoint::Unserved);
        assert_eq!(honest("GET", "x_matrix/client/v3/publicRooms"), Endpoint::Unserved);
        assert_eq!(honest("GET", ""), Endpoint::Unserved);
        assert_eq!(honest("GET", "/"), Endpoint::Unserved);
        assert_eq!(honest("GET", "//"), Endpoint::Unserved);
    }

    #[test]
    fn an_escaped_literal_shows_itself_by_disagreement() {
        let public_rooms = split(Endpoint::UnknownClient, Endpoint::GetPublicRooms);
        assert_eq!(both("GET", "/_matrix/client/v3/public%52ooms"), public_rooms);
        assert_eq!(both("GET", "/_matrix/client/v%33/publicRooms"), public_rooms);
        assert_eq!(both("GET", "/_matrix/%63lient/v3/publicRooms"), public_rooms);
        let outside = split(Endpoint::Unserved, Endpoint::GetPublicRooms);
        assert_eq!(both("GET", "/%5Fmatrix/client/v3/publicRooms"), outside);
        assert_eq!(both("GET", "/%5fmatrix/client/v3/publicRooms"), outside);
        assert_eq!(both("GET", "//_matrix/client/v3/publicRooms"), outside);
        // Synapse decodes once.
        assert_eq!(honest("GET", "/_matrix/client/v3/public%2552ooms"), Endpoint::UnknownClient);
    }

    #[test]
    fn the_profile_fields_of_every_spelling_are_found() {
        let displayname = split(Endpoint::GetProfileField, Endpoint::GetDisplayName);
        assert_eq!(both("GET", "/_matrix/client/v3/profile/@a:b/display%6Eame"), displayname);
        assert_eq!(both("GET", "/_matrix/client/unstable/uk.tcpip.msc4133/profile/@a:b/%64isplayname"), displayname);
        assert_eq!(
            both("GET", "/_matrix/client/r0/profile/@a:b/avatar%5furl"),
            split(Endpoint::UnknownClient, Endpoint::GetAvatarUrl)
        );
        assert_eq!(honest("GET", "/_matrix/client/v3/profile/@a:b"), Endpoint::GetProfile);
        assert_eq!(honest("GET", "/_matrix/client/v3/profile/%40a%3Ab"), Endpoint::GetProfile);
        assert_eq!(honest("GET", "/_matrix/client/v3/profile/@a%2Fb:c/displayname"), Endpoint::GetDisplayName);
        assert_eq!(honest("GET", "/_matrix/client/v3/profile//displayname"), Endpoint::GetDisplayName);
        assert_eq!(honest("GET", "/_matrix/client/v3/profile/@a:b/"), Endpoint::GetProfileField);
        assert_eq!(honest("PUT", "/_matrix/client/v3/profile/@a:b/m.tz"), Endpoint::SetProfileField);
        assert_eq!(
            honest("DELETE", "/_matrix/client/unstable/uk.tcpip.msc4133/profile/@a:b/m.tz"),
            Endpoint::DeleteProfileField
        );
        assert_eq!(honest("GET", "/_matrix/client/r0/profile/@a:b/m.tz"), Endpoint::UnknownClient);
    }

    #[test]
    fn the_profile_query_of_every_spelling_is_found() {
        assert_eq!(honest("GET", "/_matrix/federation/v1/query/profile"), Endpoint::FederationQueryProfile);
        assert_eq!(
            both("GET", "/_matrix/federation/v1/query/%70rofile"),
            split(Endpoint::FederationQuery, Endpoint::FederationQueryProfile)
        );
        assert_eq!(honest("GET", "/_matrix/federation/v1/query/client_keys"), Endpoint::FederationQuery);
    }

    #[test]
    fn metrics_are_metrics_in_every_spelling_that_the_tree_takes() {
        assert_eq!(honest("GET", "/_synapse/metrics"), Endpoint::SynapseMetrics);
        assert_eq!(honest("GET", "/_synapse/metrics/"), Endpoint::SynapseMetrics);
        assert_eq!(honest("GET", "/_synapse/metrics/foo/bar"), Endpoint::SynapseMetrics);
        for path in ["//_synapse/metrics", "///_synapse/metrics", "/_synapse/%6Detrics", "//%5fsynapse/metrics/foo"] {
            assert_eq!(both("GET", path), split(Endpoint::Unserved, Endpoint::SynapseMetrics), "{path}");
        }
        assert_eq!(both("POST", "/_synapse/m%61s/query_user").decoded, Endpoint::SynapseMas);
        assert_eq!(honest("GET", "/_synapse/metricsx"), Endpoint::Unserved);
    }

    #[test]
    fn the_rest_of_the_tree_is_as_tolerant() {
        assert_eq!(honest("GET", "/.well-known/matrix/client/x/y"), Endpoint::WellKnownClient);
        assert_eq!(both("GET", "//.well-known/matrix/client").decoded, Endpoint::WellKnownClient);
        assert_eq!(both("GET", "/%2Ewell-known/matrix/server").decoded, Endpoint::WellKnownServer);
        assert_eq!(both("GET", "//_synapse/client/pick_idp").decoded, Endpoint::SynapsePickIdp);
        assert_eq!(both("GET", "/_matrix/st%61tic/").decoded, Endpoint::StaticPage);
        assert_eq!(honest("GET", "/_matrix/static/client/login/style.css"), Endpoint::StaticPage);
        assert_eq!(honest("GET", "/.well-known/matrix/nothing"), Endpoint::UnknownWellKnown);
        assert_eq!(honest("GET", "/xwell-known/matrix/client"), Endpoint::Unserved);
        assert_eq!(honest("GET", "/.well-known/acme-challenge/token"), Endpoint::Unserved);
    }

    #[test]
    fn an_unescaped_dot_is_any_byte() {
        for path in [
            "/_matrix/client/unstable/im.nheko.summary/summary/!x",
            "/_matrix/client/unstable/imXnheko/summary/summary/!x",
            "/_matrix/client/unstable/imXnhekoXsummary/rooms/!x/summary",
            "/_matrix/client/unstable/im/nheko/summary/rooms/!x/summary",
        ] {
            assert_eq!(honest("GET", path), Endpoint::GetRoomSummary, "{path}");
        }
        assert_eq!(
            both("GET", "/_matrix/client/unstable/im%2Fnheko.summary/summary/x").decoded,
            Endpoint::GetRoomSummary
        );
        assert_eq!(
            honest("GET", "/_matrix/client/v1/register/m-login/registration_token/validity"),
            Endpoint::CheckRegistrationTokenValidity
        );
        assert_eq!(honest("GET", "/_matrix/client/unstable/imnhekosummary/summary/!x"), Endpoint::UnknownClient);
    }

    #[test]
    fn the_admin_api_of_the_client_prefix_is_internal() {
        for version in ["api/v1", "r0", "v3", "unstable"] {
            assert!(honest("GET", &format!("/_matrix/client/{version}/admin/whois/@a:b")).is_internal());
        }
        assert!(both("GET", "/_matrix/client/v3/%61dmin/whois/@a:b").decoded.is_internal());
        assert_eq!(honest("GET", "/_synapse/admin/v1/server_version"), Endpoint::SynapseAdminGetVersion);
        assert_eq!(honest("GET", "/_synapse/admin/v1/whatever"), Endpoint::SynapseAdmin);
        assert_eq!(honest("POST", "/_synapse/replication/fed_query/profile"), Endpoint::SynapseReplication);
        assert_eq!(honest("GET", "/_synapse/other"), Endpoint::Unserved);
    }

    #[test]
    fn unbind_is_found_in_the_client_and_the_identity_api() {
        assert_eq!(honest("POST", "/_matrix/identity/v2/3pid/unbind"), Endpoint::IdentityUnbind);
        assert_eq!(honest("POST", "/_matrix/identity/api/v1/3pid/unbind"), Endpoint::IdentityUnbind);
        assert_eq!(both("POST", "/_matrix/identity/v2/3pid/%75nbind").decoded, Endpoint::IdentityUnbind);
        for version in ["r0", "v3", "unstable"] {
            assert_eq!(
                honest("POST", &format!("/_matrix/client/{version}/account/3pid/unbind")),
                Endpoint::ThreepidUnbind
            );
        }
    }

    #[test]
    fn legacy_media_is_media_under_each_of_its_versions() {
        for version in ["r0", "v1", "v3"] {
            let path = format!("/_matrix/media/{version}/download/example.org/abc");
            assert_eq!(honest("GET", &path), Endpoint::MediaGetContent);
            assert_eq!(honest("GET", &format!("{path}/a%20name.png")), Endpoint::MediaGetContent);
            assert_eq!(honest("GET", &format!("{path}/a/b")), Endpoint::UnknownMedia);
        }
    }

    #[test]
    fn a_slash_at_the_end_is_a_segment_of_its_own() {
        let send = Endpoint::FederationSendTransactionMessage;
        assert_eq!(honest("PUT", "/_matrix/federation/v1/send/123"), send);
        assert_eq!(honest("PUT", "/_matrix/federation/v1/send/123/"), send);
        assert_eq!(honest("PUT", "/_matrix/federation/v1/send/123/x"), Endpoint::UnknownFederation);
        assert_eq!(honest("GET", "/_matrix/client/v3/rooms/!x/state/m.room.name/"), Endpoint::GetStateEvent);
        assert_eq!(honest("GET", "/_matrix/client/v3/pushrules/"), Endpoint::GetPushRules);
        assert_eq!(honest("PUT", "/_matrix/client/v3/pushrules/global/room/%21x/enabled"), Endpoint::SetPushRule);
        assert_eq!(honest("GET", "/_matrix/client/v3/pushrules"), Endpoint::UnknownClient);
    }

    #[test]
    fn the_unknown_is_named_by_its_prefix() {
        for (path, unknown) in [
            ("/_matrix", Endpoint::UnknownClient),
            ("/_matrix/client", Endpoint::UnknownClient),
            ("/_matrix/client/v9/new", Endpoint::UnknownClient),
            ("/_matrix/else/v1/new", Endpoint::UnknownClient),
            ("/_matrix/federation/v9/new", Endpoint::UnknownFederation),
            ("/_matrix/federation", Endpoint::UnknownFederation),
            ("/_matrix/key/v9", Endpoint::UnknownKey),
            ("/_matrix/media/v9/new", Endpoint::UnknownMedia),
            ("/_matrix/identity/v9/new", Endpoint::UnknownIdentity),
            ("/_synapse/client/new", Endpoint::UnknownSynapse),
            ("/_matrixx/client/v3/sync", Endpoint::Unserved),
            ("/_synapse", Endpoint::Unserved),
        ] {
            assert_eq!(honest("GET", path), unknown, "{path}");
        }
    }

    #[test]
    fn a_peer_is_known_by_its_path_in_any_spelling() {
        for path in ["/_matrix/federation/v1/version", "/_matrix/key/v2/server", "/_matrix/federation"] {
            assert_eq!(flow(path), Flow::Federation, "{path}");
        }
        assert_eq!(flow("/_matrix/%66ederation/v1/version"), Flow::Federation);
        assert_eq!(flow("//_matrix/key/v2/server"), Flow::Federation);
        for path in ["/_matrix/federationx", "/_matrix/client/v3/sync", "/", "", "/_matrix%2Fkey/v2"] {
            assert_eq!(flow(path), Flow::Client, "{path}");
        }
    }

    #[test]
    fn no_two_endpoints_share_a_path_and_a_method() {
        for node in &TRIE.nodes {
            for endpoints in [&node.here, &node.below] {
                let mut methods: Vec<_> = endpoints.iter().flat_map(|endpoint| endpoint.methods()).collect();
                methods.sort();
                assert!(methods.windows(2).all(|pair| pair[0] != pair[1]), "{endpoints:?}");
            }
        }
    }

    #[test]
    fn an_escape_is_undone_once_and_a_malformed_one_stays() {
        for (path, decoded) in [
            ("/a%62c", "/abc"),
            ("/%2562", "/%62"),
            ("/%", "/%"),
            ("/%6", "/%6"),
            ("/%zz%62", "/%zzb"),
            ("/%%62", "/%b"),
            ("/a%2Fb", "/a\0b"),
            ("///a%2fb", "/a\0b"),
            ("/+", "/+"),
        ] {
            assert_eq!(decode(path.as_bytes()), decoded.as_bytes(), "{path}");
        }
    }
}
