//! The table of endpoints: all that Synapse serves, and what the specification says it might.
//!
//! A line reads: name, id, methods, who may ask (`Auth`), and the path forms, each as the versions (or services) below
//! the section's prefix and the path below them. `{name}` stands for one segment, also an empty one; `{*name}` for all
//! the rest, at least one segment. A path that ends with `/` has an empty last segment: where Synapse's pattern ends in
//! `/?` both forms stand here. Methods are written as on the wire; `*` is any method.
//!
//! Synapse finds some of these in Twisted's tree of resources and not by a regular expression: the static and consent
//! pages, well-known, health, and all below `/_synapse` but admin and replication. Where such a resource is a leaf it
//! serves whatever stands below it, too.
//!
//! Three kinds of path are not here, for they are nobody's before an operator configures them: resources that Synapse
//! modules add, `additional_resources` of a listener, and prefixes that MSC4512 hands to an application service.

use super::{Api, Auth, Form, Row};

macro_rules! endpoints {
    ($($api:ident $prefix:literal { $(
        $name:ident $id:literal $($method:literal)+ $auth:ident $([$($versions:tt)*] $path:literal)*;
    )* })*) => {
        /// What a request asks for: one line of the table, which is closed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Endpoint { $($(
            #[doc = concat!("`", $id, "`:", $(" ", $method,)+ $(" `[", stringify!($($versions)*), "] ", $path, "`",)*)]
            $name,
        )*)* }

        impl Endpoint {
            /// Every endpoint, in the order of the table; an endpoint's `index()` is its position here.
            pub const ALL: &'static [Endpoint] = &[$($(Endpoint::$name,)*)*];
        }

        /// The rows, in the order of `Endpoint::ALL`.
        pub(super) static ROWS: &[Row] = &[$($(
            Row {
                id: $id,
                api: Api::$api,
                auth: Auth::$auth,
                methods: &[$($method),+],
                forms: &[$(Form { prefix: $prefix, versions: stringify!($($versions)*), path: $path }),*],
            },
        )*)*];
    };
}

endpoints! {

Client "/_matrix/client" {

// The server.
GetSupportedVersions "get_supported_versions" "GET" OptionalToken [] "/versions";
GetCapabilities "get_capabilities" "GET" Token [r0 v3 unstable] "/capabilities";
GetPasswordPolicy "get_password_policy" "GET" None [r0 v3 unstable] "/password_policy";
GetAuthorizationServerMetadata "get_authorization_server_metadata" "GET" None
    [v1 unstable] "/auth_metadata" [unstable] "/org.matrix.msc2965/auth_metadata";
GetTurnServerInfo "get_turn_server_info" "GET" Token [api/v1 r0 v3 unstable] "/voip/turnServer";
GetRtcTransports "get_rtc_transports" "GET" Token [unstable] "/org.matrix.msc4143/rtc/transports";
GetRetentionConfiguration "get_retention_configuration" "GET" Token
    [unstable] "/org.matrix.msc1763/retention/configuration";
GetUserInfo "get_user_info" "GET" Token [api/v1 r0 v3 unstable] "/admin/whois/{userId}";

// Session.
GetLoginTypes "get_login_types" "GET" None [api/v1 r0 v3 unstable] "/login";
Login "login" "POST" None [api/v1 r0 v3 unstable] "/login";
GetLoginToken "get_login_token" "POST" Token [v1] "/login/get_token" [unstable] "/org.matrix.msc3882/login/token";
SsoLogin "sso_login" "GET" None
    [api/v1 r0 v3 unstable] "/login/sso/redirect" [api/v1 r0 v3 unstable] "/login/cas/redirect";
SsoLoginWithProvider "sso_login_with_provider" "GET" None [r0 v3] "/login/sso/redirect/{idpId}";
CasTicket "cas_ticket" "GET" OtherSecret [api/v1 r0 v3 unstable] "/login/cas/ticket";
RefreshToken "refresh_token" "POST" OtherSecret [r0 v3 unstable] "/refresh";
LegacyRefreshToken "legacy_refresh_token" "POST" None [r0 v3 unstable] "/tokenrefresh";
Logout "logout" "POST" Token [api/v1 r0 v3 unstable] "/logout";
LogoutAll "logout_all" "POST" Token [api/v1 r0 v3 unstable] "/logout/all";
GetUiaaFallbackPage "get_uiaa_fallback_page" "GET" OtherSecret [r0 v3 unstable] "/auth/{authType}/fallback/web";
SendUiaaFallbackPage "send_uiaa_fallback_page" "POST" OtherSecret [r0 v3 unstable] "/auth/{authType}/fallback/web";

// Registration. A token here is an application service's; any other one is refused.
Register "register" "POST" OptionalToken [r0 v3 unstable] "/register";
GetUsernameAvailability "get_username_availability" "GET" None [r0 v3 unstable] "/register/available";
CheckRegistrationTokenValidity "check_registration_token_validity" "GET" None
    [v1 unstable] "/register/m.login.registration_token/validity";
RequestRegistrationTokenViaEmail "request_registration_token_via_email" "POST" None
    [r0 v3 unstable] "/register/email/requestToken";
RequestRegistrationTokenViaMsisdn "request_registration_token_via_msisdn" "POST" None
    [r0 v3 unstable] "/register/msisdn/requestToken";
SubmitRegistrationToken "submit_registration_token" "GET" OtherSecret [unstable] "/registration/{medium}/submit_token";

// Account. A password can be changed without a token, by the e-mail stage.
Whoami "whoami" "GET" Token [r0 v3 unstable] "/account/whoami";
ChangePassword "change_password" "POST" OptionalToken [r0 v3 unstable] "/account/password";
RequestPasswordChangeTokenViaEmail "request_password_change_token_via_email" "POST" None
    [r0 v3 unstable] "/account/password/email/requestToken";
Deactivate "deactivate" "POST" Token [r0 v3 unstable] "/account/deactivate";
GetThreepids "get_threepids" "GET" Token [r0 v3 unstable] "/account/3pid";
LegacyThreepidAdd "legacy_threepid_add" "POST" Token [r0 v3 unstable] "/account/3pid";
ThreepidAdd "threepid_add" "POST" Token [r0 v3 unstable] "/account/3pid/add";
ThreepidBind "threepid_bind" "POST" Token [r0 v3 unstable] "/account/3pid/bind";
ThreepidUnbind "threepid_unbind" "POST" Token [r0 v3 unstable] "/account/3pid/unbind";
ThreepidDelete "threepid_delete" "POST" Token [r0 v3 unstable] "/account/3pid/delete";
RequestThreepidTokenViaEmail "request_threepid_token_via_email" "POST" None
    [r0 v3 unstable] "/account/3pid/email/requestToken";
RequestThreepidTokenViaMsisdn "request_threepid_token_via_msisdn" "POST" None
    [r0 v3 unstable] "/account/3pid/msisdn/requestToken";
SubmitThreepidTokenViaEmail "submit_threepid_token_via_email" "GET" OtherSecret
    [unstable] "/add_threepid/email/submit_token";
SubmitThreepidTokenViaMsisdn "submit_threepid_token_via_msisdn" "POST" OtherSecret
    [unstable] "/add_threepid/msisdn/submit_token";
RenewAccountValidity "renew_account_validity" "GET" OtherSecret [r0 v3 unstable] "/account_validity/renew";
SendAccountValidityMail "send_account_validity_mail" "POST" Token [r0 v3 unstable] "/account_validity/send_mail";
GetAccountStatus "get_account_status" "POST" Token [unstable] "/org.matrix.msc3720/account_status";
RequestOpenidToken "request_openid_token" "POST" Token [r0 v3 unstable] "/user/{userId}/openid/request_token";

// Devices.
GetDevices "get_devices" "GET" Token [r0 v3 unstable] "/devices";
GetDevice "get_device" "GET" Token [r0 v3 unstable] "/devices/{deviceId}";
UpdateDevice "update_device" "PUT" Token [r0 v3 unstable] "/devices/{deviceId}";
DeleteDevice "delete_device" "DELETE" Token [r0 v3 unstable] "/devices/{deviceId}";
DeleteDevices "delete_devices" "POST" Token [r0 v3 unstable] "/delete_devices";
GetDehydratedDevice "get_dehydrated_device" "GET" Token [unstable] "/org.matrix.msc3814.v1/dehydrated_device";
PutDehydratedDevice "put_dehydrated_device" "PUT" Token [unstable] "/org.matrix.msc3814.v1/dehydrated_device";
DeleteDehydratedDevice "delete_dehydrated_device" "DELETE" Token [unstable] "/org.matrix.msc3814.v1/dehydrated_device";
GetDehydratedDeviceEvents "get_dehydrated_device_events" "GET" "POST" Token
    [unstable] "/org.matrix.msc3814.v1/dehydrated_device/{deviceId}/events";

// Signing in with another device. A rendezvous id is the capability.
CreateRendezvousSession "create_rendezvous_session" "POST" OptionalToken
    [unstable] "/org.matrix.msc4108/rendezvous" [unstable] "/io.element.msc4388/rendezvous";
DiscoverRendezvous "discover_rendezvous" "GET" OptionalToken [unstable] "/io.element.msc4388/rendezvous";
GetRendezvousSession "get_rendezvous_session" "GET" OtherSecret [unstable] "/io.element.msc4388/rendezvous/{id}";
UpdateRendezvousSession "update_rendezvous_session" "PUT" OtherSecret [unstable] "/io.element.msc4388/rendezvous/{id}";
DeleteRendezvousSession "delete_rendezvous_session" "DELETE" OtherSecret
    [unstable] "/io.element.msc4388/rendezvous/{id}";

// Profile. GetProfileField and its like are any other field, by MSC4133.
GetProfile "get_profile" "GET" OptionalToken [api/v1 r0 v3 unstable] "/profile/{userId}";
GetDisplayName "get_display_name" "GET" OptionalToken
    [api/v1 r0 v3 unstable] "/profile/{userId}/displayname"
    [unstable] "/uk.tcpip.msc4133/profile/{userId}/displayname";
SetDisplayName "set_display_name" "PUT" Token
    [api/v1 r0 v3 unstable] "/profile/{userId}/displayname"
    [unstable] "/uk.tcpip.msc4133/profile/{userId}/displayname";
DeleteDisplayName "delete_display_name" "DELETE" Token
    [api/v1 r0 v3 unstable] "/profile/{userId}/displayname"
    [unstable] "/uk.tcpip.msc4133/profile/{userId}/displayname";
GetAvatarUrl "get_avatar_url" "GET" OptionalToken
    [api/v1 r0 v3 unstable] "/profile/{userId}/avatar_url"
    [unstable] "/uk.tcpip.msc4133/profile/{userId}/avatar_url";
SetAvatarUrl "set_avatar_url" "PUT" Token
    [api/v1 r0 v3 unstable] "/profile/{userId}/avatar_url"
    [unstable] "/uk.tcpip.msc4133/profile/{userId}/avatar_url";
DeleteAvatarUrl "delete_avatar_url" "DELETE" Token
    [api/v1 r0 v3 unstable] "/profile/{userId}/avatar_url"
    [unstable] "/uk.tcpip.msc4133/profile/{userId}/avatar_url";
GetProfileField "get_profile_field" "GET" OptionalToken
    [v3] "/profile/{userId}/{field}" [unstable] "/uk.tcpip.msc4133/profile/{userId}/{field}";
SetProfileField "set_profile_field" "PUT" Token
    [v3] "/profile/{userId}/{field}" [unstable] "/uk.tcpip.msc4133/profile/{userId}/{field}";
DeleteProfileField "delete_profile_field" "DELETE" Token
    [v3] "/profile/{userId}/{field}" [unstable] "/uk.tcpip.msc4133/profile/{userId}/{field}";

// Finding people and rooms.
GetPublicRooms "get_public_rooms" "GET" OptionalToken [api/v1 r0 v3 unstable] "/publicRooms";
GetPublicRoomsFiltered "get_public_rooms_filtered" "POST" Token [api/v1 r0 v3 unstable] "/publicRooms";
SearchUsers "search_users" "POST" Token [r0 v3 unstable] "/user_directory/search";
GetMutualRooms "get_mutual_rooms" "GET" Token [v1 unstable] "/mutual_rooms";
GetAlias "get_alias" "GET" None [api/v1 r0 v3 unstable] "/directory/room/{roomAlias}";
CreateAlias "create_alias" "PUT" Token [api/v1 r0 v3 unstable] "/directory/room/{roomAlias}";
DeleteAlias "delete_alias" "DELETE" Token [api/v1 r0 v3 unstable] "/directory/room/{roomAlias}";
GetRoomVisibility "get_room_visibility" "GET" None [api/v1 r0 v3 unstable] "/directory/list/room/{roomId}";
SetRoomVisibility "set_room_visibility" "PUT" Token [api/v1 r0 v3 unstable] "/directory/list/room/{roomId}";
SetAppserviceRoomVisibility "set_appservice_room_visibility" "PUT" "DELETE" Token
    [api/v1 r0 v3 unstable] "/directory/list/appservice/{networkId}/{roomId}";
GetRoomSummary "get_room_summary" "GET" OptionalToken
    [v1] "/room_summary/{roomIdOrAlias}"
    [unstable] "/im.nheko.summary/summary/{roomIdOrAlias}"
    [unstable] "/im.nheko.summary/rooms/{roomIdOrAlias}/summary";
GetHierarchy "get_hierarchy" "GET" Token [v1] "/rooms/{roomId}/hierarchy";
Search "search" "POST" Token [api/v1 r0 v3 unstable] "/search";
GetThirdPartyProtocols "get_third_party_protocols" "GET" Token [r0 v3 unstable] "/thirdparty/protocols";
GetThirdPartyProtocol "get_third_party_protocol" "GET" Token [r0 v3 unstable] "/thirdparty/protocol/{protocol}";
GetThirdPartyLocation "get_third_party_location" "GET" Token
    [r0 v3 unstable] "/thirdparty/location" [r0 v3 unstable] "/thirdparty/location/{protocol}";
GetThirdPartyUser "get_third_party_user" "GET" Token
    [r0 v3 unstable] "/thirdparty/user" [r0 v3 unstable] "/thirdparty/user/{protocol}";

// Sync.
Sync "sync" "GET" Token [r0 v3 unstable] "/sync";
SlidingSync "sliding_sync" "POST" Token [unstable] "/org.matrix.simplified_msc3575/sync";
InitialSync "initial_sync" "GET" Token [api/v1 r0 v3 unstable] "/initialSync";
GetEvents "get_events" "GET" Token [api/v1 r0 v3 unstable] "/events";
GetEvent "get_event" "GET" Token [api/v1 r0 v3 unstable] "/events/{eventId}";
CreateFilter "create_filter" "POST" Token [r0 v3 unstable] "/user/{userId}/filter";
GetFilter "get_filter" "GET" Token [r0 v3 unstable] "/user/{userId}/filter/{filterId}";
GetNotifications "get_notifications" "GET" Token [r0 v3 unstable] "/notifications";
GetThreadSubscriptions "get_thread_subscriptions" "GET" Token
    [unstable] "/io.element.msc4308/thread_subscriptions";

// Rooms and who is in them.
CreateRoom "create_room" "POST" "PUT" Token
    [api/v1 r0 v3 unstable] "/createRoom" [api/v1 r0 v3 unstable] "/createRoom/{txnId}";
JoinRoomByIdOrAlias "join_room_by_id_or_alias" "POST" "PUT" Token
    [api/v1 r0 v3 unstable] "/join/{roomIdOrAlias}" [api/v1 r0 v3 unstable] "/join/{roomIdOrAlias}/{txnId}";
KnockRoom "knock_room" "POST" Token [r0 v3 unstable] "/knock/{roomIdOrAlias}";
JoinRoomById "join_room_by_id" "POST" "PUT" Token
    [api/v1 r0 v3 unstable] "/rooms/{roomId}/join" [api/v1 r0 v3 unstable] "/rooms/{roomId}/join/{txnId}";
InviteUser "invite_user" "POST" "PUT" Token
    [api/v1 r0 v3 unstable] "/rooms/{roomId}/invite" [api/v1 r0 v3 unstable] "/rooms/{roomId}/invite/{txnId}";
LeaveRoom "leave_room" "POST" "PUT" Token
    [api/v1 r0 v3 unstable] "/rooms/{roomId}/leave" [api/v1 r0 v3 unstable] "/rooms/{roomId}/leave/{txnId}";
BanUser "ban_user" "POST" "PUT" Token
    [api/v1 r0 v3 unstable] "/rooms/{roomId}/ban" [api/v1 r0 v3 unstable] "/rooms/{roomId}/ban/{txnId}";
UnbanUser "unban_user" "POST" "PUT" Token
    [api/v1 r0 v3 unstable] "/rooms/{roomId}/unban" [api/v1 r0 v3 unstable] "/rooms/{roomId}/unban/{txnId}";
KickUser "kick_user" "POST" "PUT" Token
    [api/v1 r0 v3 unstable] "/rooms/{roomId}/kick" [api/v1 r0 v3 unstable] "/rooms/{roomId}/kick/{txnId}";
ForgetRoom "forget_room" "POST" "PUT" Token
    [api/v1 r0 v3 unstable] "/rooms/{roomId}/forget" [api/v1 r0 v3 unstable] "/rooms/{roomId}/forget/{txnId}";
UpgradeRoom "upgrade_room" "POST" Token [r0 v3 unstable] "/rooms/{roomId}/upgrade";
JoinedRooms "joined_rooms" "GET" Token [api/v1 r0 v3 unstable] "/joined_rooms";
JoinedMembers "joined_members" "GET" Token [api/v1 r0 v3 unstable] "/rooms/{roomId}/joined_members";
GetMemberEvents "get_member_events" "GET" Token [api/v1 r0 v3 unstable] "/rooms/{roomId}/members";
IsJoined "is_joined" "GET" Token [unstable] "/io.element.msc4502/rooms/{roomId}/is_joined";
GetRoomAliases "get_room_aliases" "GET" Token
    [r0 v3] "/rooms/{roomId}/aliases" [unstable] "/org.matrix.msc2432/rooms/{roomId}/aliases";
ReportContent "report_content" "POST" Token [r0 v3 unstable] "/rooms/{roomId}/report/{eventId}";
ReportRoom "report_room" "POST" Token [v3] "/rooms/{roomId}/report";
ReportUser "report_user" "POST" Token [v3] "/users/{userId}/report";

// Events.
GetMessages "get_messages" "GET" Token [api/v1 r0 v3 unstable] "/rooms/{roomId}/messages";
GetRoomEvent "get_room_event" "GET" Token [api/v1 r0 v3 unstable] "/rooms/{roomId}/event/{eventId}";
GetContext "get_context" "GET" Token [api/v1 r0 v3 unstable] "/rooms/{roomId}/context/{eventId}";
GetRelations "get_relations" "GET" Token
    [v1 unstable] "/rooms/{roomId}/relations/{eventId}"
    [v1 unstable] "/rooms/{roomId}/relations/{eventId}/{relType}"
    [v1 unstable] "/rooms/{roomId}/relations/{eventId}/{relType}/{eventType}";
GetThreads "get_threads" "GET" Token [v1] "/rooms/{roomId}/threads";
GetEventByTimestamp "get_event_by_timestamp" "GET" Token [v1] "/rooms/{roomId}/timestamp_to_event";
RoomInitialSync "room_initial_sync" "GET" Token [api/v1 r0 v3 unstable] "/rooms/{roomId}/initialSync";
GetState "get_state" "GET" Token [api/v1 r0 v3 unstable] "/rooms/{roomId}/state";
GetStateEvent "get_state_event" "GET" Token
    [api/v1 r0 v3 unstable] "/rooms/{roomId}/state/{eventType}"
    [api/v1 r0 v3 unstable] "/rooms/{roomId}/state/{eventType}/{stateKey}";
SendStateEvent "send_state_event" "PUT" Token
    [api/v1 r0 v3 unstable] "/rooms/{roomId}/state/{eventType}"
    [api/v1 r0 v3 unstable] "/rooms/{roomId}/state/{eventType}/{stateKey}";
SendMessageEvent "send_message_event" "PUT" "POST" Token
    [api/v1 r0 v3 unstable] "/rooms/{roomId}/send/{eventType}/{txnId}"
    [api/v1 r0 v3 unstable] "/rooms/{roomId}/send/{eventType}";
RedactEvent "redact_event" "PUT" "POST" Token
    [api/v1 r0 v3 unstable] "/rooms/{roomId}/redact/{eventId}/{txnId}"
    [api/v1 r0 v3 unstable] "/rooms/{roomId}/redact/{eventId}";
GetDelayedEvents "get_delayed_events" "GET" Token [unstable] "/org.matrix.msc4140/delayed_events";
GetDelayedEvent "get_delayed_event" "GET" Token [unstable] "/org.matrix.msc4140/delayed_events/{delayId}";
UpdateDelayedEvent "update_delayed_event" "POST" OtherSecret
    [unstable] "/org.matrix.msc4140/delayed_events/{delayId}"
    [unstable] "/org.matrix.msc4140/delayed_events/{delayId}/cancel"
    [unstable] "/org.matrix.msc4140/delayed_events/{delayId}/restart"
    [unstable] "/org.matrix.msc4140/delayed_events/{delayId}/send";
GetThreadSubscription "get_thread_subscription" "GET" Token
    [unstable] "/io.element.msc4306/rooms/{roomId}/thread/{eventId}/subscription";
SubscribeThread "subscribe_thread" "PUT" Token
    [unstable] "/io.element.msc4306/rooms/{roomId}/thread/{eventId}/subscription";
UnsubscribeThread "unsubscribe_thread" "DELETE" Token
    [unstable] "/io.element.msc4306/rooms/{roomId}/thread/{eventId}/subscription";

// Typing, receipts, presence, messages to devices.
CreateTypingEvent "create_typing_event" "PUT" Token [api/v1 r0 v3 unstable] "/rooms/{roomId}/typing/{userId}";
CreateReceipt "create_receipt" "POST" Token [r0 v3 unstable] "/rooms/{roomId}/receipt/{receiptType}/{eventId}";
SetReadMarker "set_read_marker" "POST" Token [r0 v3 unstable] "/rooms/{roomId}/read_markers";
GetPresence "get_presence" "GET" Token [api/v1 r0 v3 unstable] "/presence/{userId}/status";
SetPresence "set_presence" "PUT" Token [api/v1 r0 v3 unstable] "/presence/{userId}/status";
SendEventToDevice "send_event_to_device" "PUT" Token [r0 v3 unstable] "/sendToDevice/{eventType}/{txnId}";

// Account data and tags.
GetGlobalAccountData "get_global_account_data" "GET" Token [r0 v3 unstable] "/user/{userId}/account_data/{type}";
SetGlobalAccountData "set_global_account_data" "PUT" Token [r0 v3 unstable] "/user/{userId}/account_data/{type}";
DeleteGlobalAccountData "delete_global_account_data" "DELETE" Token
    [unstable] "/org.matrix.msc3391/user/{userId}/account_data/{type}";
GetRoomAccountData "get_room_account_data" "GET" Token
    [r0 v3 unstable] "/user/{userId}/rooms/{roomId}/account_data/{type}";
SetRoomAccountData "set_room_account_data" "PUT" Token
    [r0 v3 unstable] "/user/{userId}/rooms/{roomId}/account_data/{type}";
DeleteRoomAccountData "delete_room_account_data" "DELETE" Token
    [unstable] "/org.matrix.msc3391/user/{userId}/rooms/{roomId}/account_data/{type}";
GetTags "get_tags" "GET" Token [r0 v3 unstable] "/user/{userId}/rooms/{roomId}/tags";
CreateTag "create_tag" "PUT" Token [r0 v3 unstable] "/user/{userId}/rooms/{roomId}/tags/{tag}";
DeleteTag "delete_tag" "DELETE" Token [r0 v3 unstable] "/user/{userId}/rooms/{roomId}/tags/{tag}";

// Keys.
UploadKeys "upload_keys" "POST" Token [r0 v3 unstable] "/keys/upload";
GetKeys "get_keys" "POST" Token [r0 v3 unstable] "/keys/query";
ClaimKeys "claim_keys" "POST" Token [r0 v3 unstable] "/keys/claim" [unstable] "/org.matrix.msc3983/keys/claim";
GetKeyChanges "get_key_changes" "GET" Token [r0 v3 unstable] "/keys/changes";
UploadSigningKeys "upload_signing_keys" "POST" Token [v3 unstable] "/keys/device_signing/upload";
UploadSignatures "upload_signatures" "POST" Token [r0 v3 unstable] "/keys/signatures/upload";
GetBackupKeys "get_backup_keys" "GET" Token
    [r0 v3 unstable] "/room_keys/keys"
    [r0 v3 unstable] "/room_keys/keys/{roomId}"
    [r0 v3 unstable] "/room_keys/keys/{roomId}/{sessionId}";
AddBackupKeys "add_backup_keys" "PUT" Token
    [r0 v3 unstable] "/room_keys/keys"
    [r0 v3 unstable] "/room_keys/keys/{roomId}"
    [r0 v3 unstable] "/room_keys/keys/{roomId}/{sessionId}";
DeleteBackupKeys "delete_backup_keys" "DELETE" Token
    [r0 v3 unstable] "/room_keys/keys"
    [r0 v3 unstable] "/room_keys/keys/{roomId}"
    [r0 v3 unstable] "/room_keys/keys/{roomId}/{sessionId}";
GetLatestBackupInfo "get_latest_backup_info" "GET" Token [r0 v3 unstable] "/room_keys/version";
CreateBackupVersion "create_backup_version" "POST" Token [r0 v3 unstable] "/room_keys/version";
GetBackupInfo "get_backup_info" "GET" Token [r0 v3 unstable] "/room_keys/version/{version}";
UpdateBackupVersion "update_backup_version" "PUT" Token [r0 v3 unstable] "/room_keys/version/{version}";
DeleteBackupVersion "delete_backup_version" "DELETE" Token [r0 v3 unstable] "/room_keys/version/{version}";

// Push.
GetPushers "get_pushers" "GET" Token [api/v1 r0 v3 unstable] "/pushers";
SetPusher "set_pusher" "POST" Token [api/v1 r0 v3 unstable] "/pushers/set";
RemovePusher "remove_pusher" "GET" OtherSecret [unstable] "/pushers/remove";
GetPushRules "get_push_rules" "GET" Token [api/v1 r0 v3 unstable] "/pushrules/{*rule}";
SetPushRule "set_push_rule" "PUT" Token [api/v1 r0 v3 unstable] "/pushrules/{*rule}";
DeletePushRule "delete_push_rule" "DELETE" Token [api/v1 r0 v3 unstable] "/pushrules/{*rule}";

// Media, with a token.
GetMediaConfig "get_media_config" "GET" Token [v1] "/media/config";
GetMediaPreview "get_media_preview" "GET" Token [v1] "/media/preview_url";
GetContent "get_content" "GET" Token
    [v1] "/media/download/{serverName}/{mediaId}" [v1] "/media/download/{serverName}/{mediaId}/{fileName}";
GetContentThumbnail "get_content_thumbnail" "GET" Token [v1] "/media/thumbnail/{serverName}/{mediaId}";

// Application services.
RequestPing "request_ping" "POST" Token [v1 unstable] "/appservice/{appserviceId}/ping";
AppserviceFederationProxy "appservice_federation_proxy" "POST" Token
    [unstable] "/io.element.msc4512/appservice/fed_proxy";

UnknownClient "unknown_client" "*" None;
}

Media "/_matrix/media" {
MediaGetContent "media_get_content" "GET" None
    [r0 v3 v1] "/download/{serverName}/{mediaId}" [r0 v3 v1] "/download/{serverName}/{mediaId}/{fileName}";
MediaGetContentThumbnail "media_get_content_thumbnail" "GET" None [r0 v3 v1] "/thumbnail/{serverName}/{mediaId}";
MediaGetPreview "media_get_preview" "GET" Token [r0 v3 v1] "/preview_url";
MediaGetConfig "media_get_config" "GET" Token [r0 v3 v1] "/config";
MediaCreateContent "media_create_content" "POST" Token [r0 v3 v1] "/upload";
MediaCreateMxcUri "media_create_mxc_uri" "POST" Token [v1] "/create";
MediaCreateContentAsync "media_create_content_async" "PUT" Token [v3] "/upload/{serverName}/{mediaId}";
UnknownMedia "unknown_media" "*" None;
}

Federation "/_matrix/federation" {
FederationGetVersion "federation_get_version" "GET" None [v1] "/version";
FederationGetPublicRooms "federation_get_public_rooms" "GET" ServerSignatures [v1] "/publicRooms";
FederationGetPublicRoomsFiltered "federation_get_public_rooms_filtered" "POST" ServerSignatures [v1] "/publicRooms";
FederationQueryProfile "federation_query_profile" "GET" ServerSignatures [v1] "/query/profile";
FederationQueryDirectory "federation_query_directory" "GET" ServerSignatures [v1] "/query/directory";
FederationQuery "federation_query" "GET" ServerSignatures [v1] "/query/{queryType}";
FederationGetAccountStatus "federation_get_account_status" "POST" ServerSignatures
    [unstable] "/org.matrix.msc3720/query/account_status";
FederationGetOpenidUserinfo "federation_get_openid_userinfo" "GET" OtherSecret [v1] "/openid/userinfo";
FederationBindCallback "federation_bind_callback" "POST" None [v1] "/3pid/onbind";
FederationExchangeInvite "federation_exchange_invite" "PUT" ServerSignatures
    [v1] "/exchange_third_party_invite/{roomId}";
FederationGetDevices "federation_get_devices" "GET" ServerSignatures [v1] "/user/devices/{userId}";
FederationGetKeys "federation_get_keys" "POST" ServerSignatures [v1] "/user/keys/query";
FederationClaimKeys "federation_claim_keys" "POST" ServerSignatures
    [v1] "/user/keys/claim" [unstable] "/user/keys/claim";
FederationGetHierarchy "federation_get_hierarchy" "GET" ServerSignatures [v1] "/hierarchy/{roomId}";
FederationGetRoomComplexity "federation_get_room_complexity" "GET" ServerSignatures
    [unstable] "/rooms/{roomId}/complexity";
FederationGetContent "federation_get_content" "GET" ServerSignatures [v1] "/media/download/{mediaId}";
FederationGetContentThumbnail "federation_get_content_thumbnail" "GET" ServerSignatures
    [v1] "/media/thumbnail/{mediaId}";

// Events and membership.
FederationSendTransactionMessage "federation_send_transaction_message" "PUT" ServerSignatures
    [v1] "/send/{txnId}" [v1] "/send/{txnId}/";
FederationGetEvent "federation_get_event" "GET" ServerSignatures [v1] "/event/{eventId}" [v1] "/event/{eventId}/";
FederationGetEventAuthorization "federation_get_event_authorization" "GET" ServerSignatures
    [v1] "/event_auth/{roomId}/{eventId}";
FederationGetEventByTimestamp "federation_get_event_by_timestamp" "GET" ServerSignatures
    [v1] "/timestamp_to_event/{roomId}" [v1] "/timestamp_to_event/{roomId}/";
FederationGetBackfill "federation_get_backfill" "GET" ServerSignatures
    [v1] "/backfill/{roomId}" [v1] "/backfill/{roomId}/";
FederationGetMissingEvents "federation_get_missing_events" "POST" ServerSignatures
    [v1] "/get_missing_events/{roomId}";
FederationGetRoomState "federation_get_room_state" "GET" ServerSignatures
    [v1] "/state/{roomId}" [v1] "/state/{roomId}/";
FederationGetRoomStateIds "federation_get_room_state_ids" "GET" ServerSignatures
    [v1] "/state_ids/{roomId}" [v1] "/state_ids/{roomId}/";
FederationGetExtremities "federation_get_extremities" "GET" ServerSignatures
    [unstable] "/org.matrix.msc4370/extremities/{roomId}";
FederationPrepareJoinEvent "federation_prepare_join_event" "GET" ServerSignatures [v1] "/make_join/{roomId}/{userId}";
FederationCreateJoinEvent "federation_create_join_event" "PUT" ServerSignatures [v1 v2] "/send_join/{roomId}/{eventId}";
FederationPrepareLeaveEvent "federation_prepare_leave_event" "GET" ServerSignatures
    [v1] "/make_leave/{roomId}/{userId}";
FederationCreateLeaveEvent "federation_create_leave_event" "PUT" ServerSignatures
    [v1 v2] "/send_leave/{roomId}/{eventId}";
FederationPrepareKnockEvent "federation_prepare_knock_event" "GET" ServerSignatures
    [v1] "/make_knock/{roomId}/{userId}";
FederationCreateKnockEvent "federation_create_knock_event" "PUT" ServerSignatures [v1] "/send_knock/{roomId}/{eventId}";
FederationCreateInvite "federation_create_invite" "PUT" ServerSignatures [v1 v2] "/invite/{roomId}/{eventId}";
UnknownFederation "unknown_federation" "*" None;
}

Key "/_matrix/key" {
KeyGetServerKeys "key_get_server_keys" "GET" None [v2] "/server" [v2] "/server/{keyId}";
KeyGetRemoteServerKeys "key_get_remote_server_keys" "GET" None
    [v2] "/query/{serverName}" [v2] "/query/{serverName}/{keyId}";
KeyGetRemoteServerKeysBatch "key_get_remote_server_keys_batch" "POST" None [v2] "/query";
UnknownKey "unknown_key" "*" None;
}

// Synapse serves none of these. Their tokens are the identity server's own, not the homeserver's.
Identity "/_matrix/identity" {
IdentityGetSupportedVersions "identity_get_supported_versions" "GET" None [] "/versions";
IdentityGetStatus "identity_get_status" "GET" None [] "/v2" [] "/api/v1";
IdentityGetTerms "identity_get_terms" "GET" None [v2] "/terms";
IdentityAcceptTerms "identity_accept_terms" "POST" OtherSecret [v2] "/terms";
IdentityGetAccountInformation "identity_get_account_information" "GET" OtherSecret [v2] "/account";
IdentityRegisterAccount "identity_register_account" "POST" OtherSecret [v2] "/account/register";
IdentityLogout "identity_logout" "POST" OtherSecret [v2] "/account/logout";
IdentityGetHashDetails "identity_get_hash_details" "GET" OtherSecret [v2] "/hash_details";
IdentityLookup "identity_lookup" "POST" OtherSecret [v2] "/lookup";
IdentityLegacyLookup "identity_legacy_lookup" "GET" None [api/v1] "/lookup";
IdentityBulkLookup "identity_bulk_lookup" "POST" None [api/v1] "/bulk_lookup";
IdentityBind "identity_bind" "POST" OtherSecret [v2 api/v1] "/3pid/bind";
IdentityUnbind "identity_unbind" "POST" OtherSecret [v2 api/v1] "/3pid/unbind";
IdentityGetValidatedThreepid "identity_get_validated_threepid" "GET" OtherSecret [v2 api/v1] "/3pid/getValidated3pid";
IdentityRequestTokenViaEmail "identity_request_token_via_email" "POST" OtherSecret
    [v2 api/v1] "/validate/email/requestToken";
IdentityRequestTokenViaMsisdn "identity_request_token_via_msisdn" "POST" OtherSecret
    [v2 api/v1] "/validate/msisdn/requestToken";
IdentitySubmitTokenViaEmail "identity_submit_token_via_email" "GET" "POST" OtherSecret
    [v2 api/v1] "/validate/email/submitToken";
IdentitySubmitTokenViaMsisdn "identity_submit_token_via_msisdn" "GET" "POST" OtherSecret
    [v2 api/v1] "/validate/msisdn/submitToken";
IdentityStoreInvitation "identity_store_invitation" "POST" OtherSecret [v2 api/v1] "/store-invite";
IdentityGetPublicKey "identity_get_public_key" "GET" None [v2 api/v1] "/pubkey/{keyId}";
IdentityCheckPublicKeyValidity "identity_check_public_key_validity" "GET" None [v2 api/v1] "/pubkey/isvalid";
IdentityValidateEphemeralKey "identity_validate_ephemeral_key" "GET" None [v2 api/v1] "/pubkey/ephemeral/isvalid";
IdentitySignInvitation "identity_sign_invitation" "POST" OtherSecret [v2 api/v1] "/sign-ed25519";
UnknownIdentity "unknown_identity" "*" None;
}

WellKnown "/.well-known/matrix" {
WellKnownClient "well_known_client" "GET" None [] "/client" [] "/client/{*rest}";
WellKnownServer "well_known_server" "GET" None [] "/server" [] "/server/{*rest}";
WellKnownSupport "well_known_support" "GET" None [] "/support";
WellKnownPolicyServer "well_known_policy_server" "GET" None [] "/policy_server";
UnknownWellKnown "unknown_well_known" "*" None;
}

Synapse "/_synapse" {
// Pages and callbacks for browsers. Their secrets are a session cookie, a signed link or the state of a login.
SynapsePickIdp "synapse_pick_idp" "GET" None [client] "/pick_idp";
SynapsePickUsername "synapse_pick_username" "GET" "POST" OtherSecret [client] "/pick_username/account_details";
SynapseCheckUsername "synapse_check_username" "GET" OtherSecret [client] "/pick_username/check";
SynapseNewUserConsent "synapse_new_user_consent" "GET" "POST" OtherSecret [client] "/new_user_consent";
SynapseSsoRegister "synapse_sso_register" "GET" OtherSecret [client] "/sso_register";
SynapseUnsubscribe "synapse_unsubscribe" "GET" "POST" OtherSecret [client] "/unsubscribe";
SynapseMediaUploadLimitExceeded "synapse_media_upload_limit_exceeded" "GET" None
    [client] "/media_upload_limit_exceeded";
SynapsePasswordReset "synapse_password_reset" "GET" "POST" OtherSecret
    [client] "/password_reset/email/submit_token" [client] "/password_reset/email/submit_token/{*rest}";
SynapseOidcCallback "synapse_oidc_callback" "GET" "POST" OtherSecret
    [client] "/oidc/callback" [client] "/oidc/callback/{*rest}";
SynapseOidcBackchannelLogout "synapse_oidc_backchannel_logout" "POST" OtherSecret
    [client] "/oidc/backchannel_logout" [client] "/oidc/backchannel_logout/{*rest}";
SynapseSamlMetadata "synapse_saml_metadata" "GET" None
    [client] "/saml2/metadata.xml" [client] "/saml2/metadata.xml/{*rest}";
SynapseSamlResponse "synapse_saml_response" "GET" "POST" OtherSecret
    [client] "/saml2/authn_response" [client] "/saml2/authn_response/{*rest}";
SynapseFederationWhitelist "synapse_federation_whitelist" "GET" Token [client] "/v1/config/federation_whitelist";
SynapseRendezvous "synapse_rendezvous" "GET" "PUT" "DELETE" OtherSecret
    [client] "/rendezvous" [client] "/rendezvous/{*session}";
UnknownSynapse "unknown_synapse" "*" None;

// What is not for the world. Of the whole admin API only the version is given without a token.
SynapseMetrics "synapse_metrics" "GET" None [] "/metrics" [] "/metrics/{*rest}";
SynapseReplication "synapse_replication" "GET" "POST" "PUT" OtherSecret [] "/replication" [] "/replication/{*call}";
SynapseMas "synapse_mas" "GET" "POST" OtherSecret [] "/mas" [] "/mas/{*call}";
SynapseAdmin "synapse_admin" "GET" "POST" "PUT" "DELETE" Token [] "/admin" [] "/admin/{*call}";
SynapseAdminGetVersion "synapse_admin_get_version" "GET" None [admin/v1] "/server_version";
SynapseAdminRegister "synapse_admin_register" "GET" "POST" OtherSecret [admin/v1] "/register";
SynapseAdminUsers "synapse_admin_users" "GET" Token [admin/v2 admin/v3] "/users";
SynapseAdminGetUser "synapse_admin_get_user" "GET" Token [admin/v2] "/users/{userId}";
SynapseAdminPutUser "synapse_admin_put_user" "PUT" Token [admin/v2] "/users/{userId}";
SynapseAdminDeactivate "synapse_admin_deactivate" "POST" Token [admin/v1] "/deactivate/{userId}";
SynapseAdminResetPassword "synapse_admin_reset_password" "POST" Token [admin/v1] "/reset_password/{userId}";
SynapseAdminLoginAs "synapse_admin_login_as" "POST" Token [admin/v1] "/users/{userId}/login";
SynapseAdminWhois "synapse_admin_whois" "GET" Token [admin/v1] "/whois/{userId}";
SynapseAdminRooms "synapse_admin_rooms" "GET" Token [admin/v1] "/rooms" [admin/v1] "/rooms/{roomId}";
SynapseAdminDeleteRoom "synapse_admin_delete_room" "DELETE" Token [admin/v1 admin/v2] "/rooms/{roomId}";
SynapseAdminRegistrationTokens "synapse_admin_registration_tokens" "GET" "PUT" "POST" "DELETE" Token
    [admin/v1] "/registration_tokens" [admin/v1] "/registration_tokens/{token}";
}

Other "" {
StaticPage "static_page" "GET" None [] "/_matrix/static" [] "/_matrix/static/{*file}";
ConsentPage "consent_page" "GET" "POST" OtherSecret [] "/_matrix/consent";
LegacySamlMetadata "legacy_saml_metadata" "GET" None
    [] "/_matrix/saml2/metadata.xml" [] "/_matrix/saml2/metadata.xml/{*rest}";
LegacySamlResponse "legacy_saml_response" "GET" "POST" OtherSecret
    [] "/_matrix/saml2/authn_response" [] "/_matrix/saml2/authn_response/{*rest}";
// It answers 404 below its own path.
Health "health" "GET" None [] "/health" [] "/health/{*rest}";
}

None "" {
Unserved "unserved" "*" None;
Preflight "preflight" "OPTIONS" None;
}

}
