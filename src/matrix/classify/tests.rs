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
    for path in ["/_matrix/client/v3/sync", "/_matrix/nothing", "/_synapse/client/x", "/.well-known/matrix/client"] {
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
    assert_eq!(both("GET", "/_matrix/client/unstable/im%2Fnheko.summary/summary/x").decoded, Endpoint::GetRoomSummary);
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
        assert_eq!(honest("POST", &format!("/_matrix/client/{version}/account/3pid/unbind")), Endpoint::ThreepidUnbind);
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
