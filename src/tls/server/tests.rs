use std::fs::{Permissions, set_permissions, write};
use std::path::PathBuf;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, ProtocolVersion, ServerConnection,
    SignatureScheme, SupportedProtocolVersion,
};
use tempfile::TempDir;

use super::*;
use crate::config::gateway::{Door, TlsFiles};

/// A directory with a certificate and its key.
struct Files {
    dir: TempDir,
    der: CertificateDer<'static>,
}

impl Files {
    fn new() -> Self {
        Self::of(&["matrix.example"])
    }

    fn of(names: &[&str]) -> Self {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let files = Self { dir: TempDir::new().unwrap(), der: made.cert.der().clone() };
        write(files.certificate(), made.cert.pem()).unwrap();
        write(files.key(), made.signing_key.serialize_pem()).unwrap();
        files.chmod(0o600);
        files
    }

    fn certificate(&self) -> PathBuf {
        self.dir.path().join("certificate.pem")
    }

    fn key(&self) -> PathBuf {
        self.dir.path().join("key.pem")
    }

    fn chmod(&self, mode: u32) {
        set_permissions(self.key(), Permissions::from_mode(mode)).unwrap();
    }

    fn read(&self) -> Result<Identity, Problems> {
        Identity::read(&self.certificate(), &self.key())
    }

    /// What a listener with these files shows.
    fn credentials(&self) -> Credentials {
        credentials(&[self])
    }

    /// The only problem, with the directory's name taken out.
    fn problem(&self) -> String {
        let problems = self.read().unwrap_err();
        assert_eq!(problems.0.len(), 1, "{problems}");
        problems.to_string().replace(self.dir.path().to_str().unwrap(), "DIR")
    }
}

#[test]
fn reads_a_certificate_and_its_key() {
    let files = Files::new();
    let identity = files.read().unwrap();
    assert_eq!(&identity.certified.cert[..], std::slice::from_ref(&files.der));
    assert!(identity.not_after().unwrap() > SystemTime::now());
}

#[test]
fn names_every_missing_file_at_once() {
    let problems = Identity::read(Path::new("/nowhere/a.pem"), Path::new("/nowhere/b.pem")).unwrap_err();
    assert_eq!(
        problems.to_string(),
        "the certificate file /nowhere/a.pem does not exist\nthe key file /nowhere/b.pem does not exist"
    );
}

#[test]
fn refuses_a_key_that_others_may_read_and_says_what_to_do() {
    let files = Files::new();
    for mode in [0o640, 0o604, 0o620, 0o644] {
        files.chmod(mode);
        assert_eq!(
            files.problem(),
            format!(
                "the key file DIR/key.pem is open to other users (mode {mode:04o})\n    help: chmod 600 DIR/key.pem"
            )
        );
    }
    files.chmod(0o400);
    files.read().unwrap();
}

#[test]
fn refuses_the_key_of_another_certificate() {
    let (files, other) = (Files::new(), Files::new());
    std::fs::copy(other.key(), files.key()).unwrap();
    assert_eq!(
        files.problem().lines().next().unwrap(),
        "the key DIR/key.pem does not belong to the certificate DIR/certificate.pem"
    );
}

#[test]
fn refuses_files_without_what_they_should_hold() {
    let files = Files::new();
    let pem = std::fs::read(files.certificate()).unwrap();
    std::fs::copy(files.key(), files.certificate()).unwrap();
    assert_eq!(
        files.problem(),
        "there is no certificate in DIR/certificate.pem\n    help: a PEM file with -----BEGIN CERTIFICATE----- is needed, \
         this host's certificate first"
    );
    write(files.certificate(), &pem).unwrap();
    write(files.key(), &pem).unwrap();
    assert_eq!(files.problem().lines().next().unwrap(), "there is no private key in DIR/key.pem");
    write(files.key(), "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n").unwrap();
    assert_eq!(files.problem().lines().next().unwrap(), "the key in DIR/key.pem is encrypted");
}

#[test]
fn a_damaged_key_is_refused_without_a_byte_of_it() {
    let files = Files::new();
    write(files.key(), "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n").unwrap();
    let unusable = files.problem();
    assert!(unusable.starts_with("DIR/key.pem holds a private key of a kind that cannot be used"), "{unusable}");
    write(files.key(), "-----BEGIN PRIVATE KEY-----\nse!cret\n-----END PRIVATE KEY-----\n").unwrap();
    assert_eq!(files.problem(), "the key file DIR/key.pem is not valid PEM");
    write(files.key(), "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n").unwrap();
    assert_eq!(files.problem(), "the key file DIR/key.pem is not valid PEM");
}

#[test]
fn a_damaged_certificate_is_refused() {
    let files = Files::new();
    write(files.certificate(), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert_eq!(files.problem(), "the first certificate in DIR/certificate.pem is not a valid X.509 certificate");
}

#[test]
fn a_path_that_never_ends_is_not_read_whole() {
    let problems = Identity::read(Path::new("/dev/zero"), Path::new("/dev/zero")).unwrap_err();
    assert_eq!(problems.0[0].what, "the certificate file /dev/zero is larger than 1 MiB");
}

#[test]
fn speaks_tls_1_3_and_1_2_and_prefers_h2() {
    let files = Files::new();
    let server = Server::new(files.credentials()).unwrap();
    for (version, named) in [(&TLS13, ProtocolVersion::TLSv1_3), (&TLS12, ProtocolVersion::TLSv1_2)] {
        let client = client(&[version], &["http/1.1", "h2"]);
        let (client, connection) = handshake(&client, &server).unwrap();
        assert_eq!(connection.protocol_version(), Some(named));
        assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]));
        assert_eq!(client.peer_certificates().unwrap(), std::slice::from_ref(&files.der));
    }
    let (_, connection) = handshake(&client(&[&TLS13], &["http/1.1"]), &server).unwrap();
    assert_eq!(connection.alpn_protocol(), Some(&b"http/1.1"[..]));
    let (_, connection) = handshake(&client(&[&TLS13], &[]), &server).unwrap();
    assert_eq!(connection.alpn_protocol(), None);
    assert_eq!(handshake(&client(&[&TLS13], &["smtp"]), &server).err(), Some(Error::NoApplicationProtocol));
}

#[test]
fn a_session_is_resumed_by_a_ticket() {
    let server = Server::new(Files::new().credentials()).unwrap();
    for version in [&TLS13, &TLS12] {
        let client = client(&[version], &["h2"]);
        let (_, first) = handshake(&client, &server).unwrap();
        assert_eq!(first.handshake_kind(), Some(HandshakeKind::Full));
        // A clone, as another worker has it.
        let (_, second) = handshake(&client, &server.clone()).unwrap();
        assert_eq!(second.handshake_kind(), Some(HandshakeKind::Resumed));
    }
}

#[test]
fn a_replaced_certificate_shows_in_the_next_handshake() {
    let (old, new) = (Files::new(), Files::new());
    let server = Server::new(old.credentials()).unwrap();
    let (seen, _) = handshake(&client(&[&TLS13], &[]), &server).unwrap();
    assert_eq!(seen.peer_certificates().unwrap(), std::slice::from_ref(&old.der));
    assert!(server.replace(new.credentials()).unwrap());
    let (seen, _) = handshake(&client(&[&TLS13], &[]), &server).unwrap();
    assert_eq!(seen.peer_certificates().unwrap(), std::slice::from_ref(&new.der));
    assert!(!server.replace(new.credentials()).unwrap(), "it is the same");
}

#[test]
fn the_certificate_of_the_name_that_is_asked_for_is_shown() {
    let (first, second, third) = (Files::of(&["a.example"]), Files::of(&["b.example", "*.c.example"]), Files::new());
    let server = Server::new(credentials(&[&first, &second, &third])).unwrap();
    for (name, files) in [
        ("a.example", &first),
        ("b.example", &second),
        ("B.Example", &second),
        ("x.c.example", &second),
        ("matrix.example", &third),
        ("c.example", &first),
        ("x.y.c.example", &first),
        ("unknown.example", &first),
        // An address is not sent as a name.
        ("127.0.0.1", &first),
    ] {
        let (seen, _) = handshake_for(name, &client(&[&TLS13], &[]), &server).unwrap();
        assert_eq!(seen.peer_certificates().unwrap(), std::slice::from_ref(&files.der), "{name}");
    }
}

#[test]
fn a_session_survives_a_new_certificate_but_is_not_given_out_where_clients_show_theirs() {
    let (old, new) = (Files::new(), Files::new());
    let server = Server::new(old.credentials()).unwrap();
    let client = client(&[&TLS13], &["h2"]);
    handshake(&client, &server).unwrap();
    server.replace(new.credentials()).unwrap();
    let (_, second) = handshake(&client, &server).unwrap();
    assert_eq!(second.handshake_kind(), Some(HandshakeKind::Resumed));
    let asking = Credentials { authorities: Some(vec![new.der.clone()]), ..new.credentials() };
    server.replace(asking).unwrap();
    let refused = handshake(&client, &server).err();
    assert_eq!(refused, Some(Error::NoCertificatesPresented), "an older ticket opens nothing");
}

#[test]
fn a_client_shows_a_certificate_of_the_authority_or_is_refused() {
    let (files, authority, stranger) = (Files::new(), Authority::new("ours"), Authority::new("ours"));
    let ca = files.dir.path().join("ca.pem");
    write(&ca, authority.0.pem()).unwrap();
    let listener = Listener { client_ca: Some(ca.clone()), ..listener(&[&files]) };
    let server = Server::new(Credentials::read(&listener).unwrap().unwrap()).unwrap();
    for version in [&TLS13, &TLS12] {
        let known = authority.client(&[version]);
        for _ in 0..2 {
            let (_, connection) = handshake(&known, &server).unwrap();
            assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full), "each time anew");
            assert!(connection.peer_certificates().is_some());
        }
        assert_eq!(handshake(&client(&[version], &[]), &server).err(), Some(Error::NoCertificatesPresented));
        assert!(matches!(handshake(&stranger.client(&[version]), &server), Err(Error::InvalidCertificate(_))));
    }
    write(&ca, "nothing").unwrap();
    let problems = Credentials::read(&listener).unwrap_err();
    assert!(problems.0[0].what.starts_with("there is no certificate in "), "{problems}");
    // It is no host's.
    let help = problems.0[0].help.as_deref().unwrap();
    assert!(help.contains("of an authority") && !help.contains("host"), "{problems}");
}

fn listener(files: &[&Files]) -> Listener {
    let mut listener = Listener::new(Door::Ingress, "127.0.0.1:0".parse().unwrap());
    listener.tls = files.iter().map(|files| TlsFiles { certificate: files.certificate(), key: files.key() }).collect();
    listener
}

fn credentials(files: &[&Files]) -> Credentials {
    Credentials::read(&listener(files)).unwrap().unwrap()
}

/// Who vouches for clients.
struct Authority(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        Self(rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap())
    }

    /// A client with a certificate of this authority.
    fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(["client.example".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trusting))
            .with_client_auth_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Arc::new(config)
    }
}

fn client(versions: &[&'static SupportedProtocolVersion], alpn: &[&str]) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// Lets both ends talk in memory until each has what it needs, tickets included.
fn handshake(client: &Arc<ClientConfig>, server: &Server) -> Result<(ClientConnection, ServerConnection), Error> {
    handshake_for("matrix.example", client, server)
}

/// The same, with the name that the client asks for.
fn handshake_for(
    name: &'static str,
    client: &Arc<ClientConfig>,
    server: &Server,
) -> Result<(ClientConnection, ServerConnection), Error> {
    let name = ServerName::try_from(name).unwrap();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.config()).unwrap();
    while client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    Ok((client, server))
}

/// Believes any certificate: these tests look at which one is shown.
#[derive(Debug)]
struct Trusting;

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
