//! The closed table of endpoints: what a request can ask of a homeserver, and who may ask.

mod table;

pub use table::Endpoint;

use table::ROWS;

impl Endpoint {
    /// Returns the position in [`Endpoint::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Returns the name in policies, logs and metrics, as `get_public_rooms`.
    pub fn id(self) -> &'static str {
        self.row().id
    }

    /// Finds the endpoint of this id. It walks the table, which is right for reading a policy and wrong for a request.
    pub fn from_id(id: &str) -> Option<Endpoint> {
        Endpoint::ALL.iter().copied().find(|endpoint| endpoint.id() == id)
    }

    /// Returns the API that the endpoint is part of.
    pub fn api(self) -> Api {
        self.row().api
    }

    /// Returns what the homeserver itself asks for before it answers.
    pub fn auth(self) -> Auth {
        self.row().auth
    }

    /// Returns the methods the homeserver serves, in upper case; `["*"]` where any method leads here.
    pub fn methods(self) -> &'static [&'static str] {
        self.row().methods
    }

    /// Returns the path forms for people, as `/_matrix/client/{api/v1,r0,v3,unstable}/publicRooms`. What has no path of
    /// its own (the unknown ones, `Unserved`, `Preflight`) has none.
    pub fn templates(self) -> Vec<String> {
        self.forms().iter().map(Form::template).collect()
    }

    /// Tells whether this is a path below a served prefix that nobody has named: `UnknownClient` and its like.
    pub fn is_unknown(self) -> bool {
        match self {
            Endpoint::UnknownClient
            | Endpoint::UnknownMedia
            | Endpoint::UnknownFederation
            | Endpoint::UnknownKey
            | Endpoint::UnknownIdentity
            | Endpoint::UnknownWellKnown
            | Endpoint::UnknownSynapse => true,
            // Of a table of hundreds only these are nobody's; `names_the_unknown` holds the list whole.
            _ => false,
        }
    }

    /// Tells whether this is for those who run the server: Synapse's admin, MAS, metrics and replication resources, its
    /// health check, and the client API's `admin/whois`.
    pub fn is_internal(self) -> bool {
        match self.api() {
            Api::Synapse => self.forms().iter().any(|form| form.versions != "client"),
            Api::Client => self == Endpoint::GetUserInfo,
            Api::Other => self == Endpoint::Health,
            Api::Federation | Api::Key | Api::Media | Api::Identity | Api::WellKnown | Api::None => false,
        }
    }

    /// Returns the path forms, which the classifier compiles.
    pub(super) fn forms(self) -> &'static [Form] {
        self.row().forms
    }

    fn row(self) -> &'static Row {
        &ROWS[self.index()]
    }
}

/// The API that an endpoint is part of, by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Api {
    /// `/_matrix/client`.
    Client,
    /// `/_matrix/federation`.
    Federation,
    /// `/_matrix/key`.
    Key,
    /// `/_matrix/media`: the legacy media API, mostly without authentication.
    Media,
    /// `/_matrix/identity`: identity servers. Synapse serves none of it.
    Identity,
    /// `/_synapse`.
    Synapse,
    /// `/.well-known/matrix`.
    WellKnown,
    /// Static pages, the consent page, the old place of SAML, and the health check.
    Other,
    /// What is no endpoint of the homeserver: `Unserved` and `Preflight`.
    None,
}

/// What the homeserver asks for before it answers, in its default configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Auth {
    /// Nothing: anyone may ask.
    None,
    /// A client's access token if there is one; what is answered may depend on it.
    OptionalToken,
    /// A client's access token.
    Token,
    /// X-Matrix signatures of another server.
    ServerSignatures,
    /// Some other proof: an id or a link that is itself the capability, a session, a secret shared with Synapse, or a
    /// token that is no client's access token.
    OtherSecret,
}

impl Auth {
    /// The name, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Auth::None => "none",
            Auth::OptionalToken => "optional token",
            Auth::Token => "token",
            Auth::ServerSignatures => "server signatures",
            Auth::OtherSecret => "other secret",
        }
    }
}

/// One line of the table.
pub(super) struct Row {
    id: &'static str,
    api: Api,
    auth: Auth,
    methods: &'static [&'static str],
    forms: &'static [Form],
}

/// One path form: a prefix, the versions below it, and the path below each version.
pub(super) struct Form {
    prefix: &'static str,
    versions: &'static str,
    path: &'static str,
}

impl Form {
    /// Returns the path under each version.
    pub(super) fn paths(&self) -> Vec<String> {
        match self.versions() {
            versions if versions.is_empty() => vec![format!("{}{}", self.prefix, self.path)],
            versions => versions.iter().map(|version| format!("{}/{version}{}", self.prefix, self.path)).collect(),
        }
    }

    fn template(&self) -> String {
        let version = match self.versions().as_slice() {
            [] => String::new(),
            [version] => format!("/{version}"),
            versions => format!("/{{{}}}", versions.join(",")),
        };
        format!("{}{version}{}", self.prefix, self.path)
    }

    /// Takes apart what `stringify!` made of the versions, and which need not have kept the spaces as they were.
    fn versions(&self) -> Vec<String> {
        self.versions.replace(" /", "/").replace("/ ", "/").split_whitespace().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn an_index_is_the_position_in_all() {
        for (position, endpoint) in Endpoint::ALL.iter().enumerate() {
            assert_eq!(endpoint.index(), position);
        }
        assert_eq!(ROWS.len(), Endpoint::ALL.len());
    }

    #[test]
    fn ids_are_the_names_in_snake_case_and_lead_back() {
        let mut seen = HashSet::new();
        for endpoint in Endpoint::ALL.iter().copied() {
            let mut id = String::new();
            for c in format!("{endpoint:?}").chars() {
                if c.is_ascii_uppercase() && !id.is_empty() {
                    id.push('_');
                }
                id.push(c.to_ascii_lowercase());
            }
            assert_eq!(endpoint.id(), id);
            assert!(seen.insert(endpoint.id()), "{id} stands twice");
            assert_eq!(Endpoint::from_id(&id), Some(endpoint));
        }
        assert_eq!(Endpoint::from_id("get_nothing"), None);
    }

    #[test]
    fn ids_begin_with_their_api() {
        for endpoint in Endpoint::ALL.iter().filter(|endpoint| !endpoint.is_unknown()) {
            let prefix = match endpoint.api() {
                Api::Federation => "federation_",
                Api::Key => "key_",
                Api::Media => "media_",
                Api::Identity => "identity_",
                Api::Synapse => "synapse_",
                Api::WellKnown => "well_known_",
                Api::Client | Api::Other | Api::None => "",
            };
            assert!(endpoint.id().starts_with(prefix), "{}", endpoint.id());
        }
    }

    #[test]
    fn names_the_unknown() {
        for endpoint in Endpoint::ALL {
            assert_eq!(endpoint.is_unknown(), endpoint.id().starts_with("unknown_"), "{}", endpoint.id());
            let pathless = endpoint.is_unknown() || endpoint.api() == Api::None;
            assert_eq!(endpoint.templates().is_empty(), pathless, "{}", endpoint.id());
        }
    }

    #[test]
    fn shows_one_template_for_each_form() {
        assert_eq!(Endpoint::GetPublicRooms.templates(), ["/_matrix/client/{api/v1,r0,v3,unstable}/publicRooms"]);
        assert_eq!(
            Endpoint::GetProfileField.templates(),
            [
                "/_matrix/client/v3/profile/{userId}/{field}",
                "/_matrix/client/unstable/uk.tcpip.msc4133/profile/{userId}/{field}"
            ]
        );
        assert_eq!(Endpoint::GetSupportedVersions.templates(), ["/_matrix/client/versions"]);
    }

    #[test]
    fn internal_is_what_nobody_outside_should_reach() {
        let internal: Vec<_> = Endpoint::ALL.iter().filter(|endpoint| endpoint.is_internal()).map(|e| e.id()).collect();
        assert!(
            ["synapse_metrics", "synapse_replication", "synapse_mas", "synapse_admin", "get_user_info", "health"]
                .iter()
                .all(|id| internal.contains(id))
        );
        assert!(
            internal.iter().all(|id| id.starts_with("synapse_admin")
                || ["synapse_metrics", "synapse_replication", "synapse_mas", "get_user_info", "health"].contains(id)),
            "{internal:?}"
        );
    }

    #[test]
    fn whoever_needs_a_signature_is_a_server() {
        for endpoint in Endpoint::ALL {
            if endpoint.auth() == Auth::ServerSignatures {
                assert_eq!(endpoint.api(), Api::Federation, "{}", endpoint.id());
            }
            if matches!(endpoint.auth(), Auth::Token | Auth::OptionalToken) {
                assert!(
                    matches!(endpoint.api(), Api::Client | Api::Media | Api::Synapse),
                    "{} takes a client's token",
                    endpoint.id()
                );
            }
        }
    }
}
