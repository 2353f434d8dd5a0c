//! Named classes, the operator's exceptions, and all of it against Python's `ipaddress`.

use std::io::Write;
use std::process::{Command, Stdio};

use super::*;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn every_class_is_told_from_what_is_public() {
    for (text, class) in [
        ("0.0.0.0", Class::Unspecified),
        ("0.1.2.3", Class::Unspecified),
        ("10.1.2.3", Class::Private),
        ("100.64.0.1", Class::Shared),
        ("100.127.255.255", Class::Shared),
        ("100.100.100.200", Class::Shared),
        ("127.0.0.1", Class::Loopback),
        ("127.255.0.9", Class::Loopback),
        ("168.63.129.16", Class::Metadata),
        ("169.254.169.254", Class::LinkLocal),
        ("172.16.0.1", Class::Private),
        ("172.31.255.255", Class::Private),
        ("192.0.0.192", Class::Protocol),
        ("192.0.2.1", Class::Documentation),
        ("192.88.99.1", Class::Protocol),
        ("192.168.0.1", Class::Private),
        ("198.18.0.1", Class::Benchmarking),
        ("198.19.255.255", Class::Benchmarking),
        ("198.51.100.7", Class::Documentation),
        ("203.0.113.7", Class::Documentation),
        ("224.0.0.1", Class::Multicast),
        ("240.0.0.1", Class::Reserved),
        ("255.255.255.254", Class::Reserved),
        ("255.255.255.255", Class::Broadcast),
        ("::", Class::Unspecified),
        ("::1", Class::Loopback),
        ("::7f00:1", Class::Embedded(Ipv4Addr::LOCALHOST)),
        ("::ffff:127.0.0.1", Class::Embedded(Ipv4Addr::LOCALHOST)),
        ("::ffff:0:127.0.0.1", Class::Embedded(Ipv4Addr::LOCALHOST)),
        ("64:ff9b::127.0.0.1", Class::Embedded(Ipv4Addr::LOCALHOST)),
        ("64:ff9b:1::7f00:1", Class::Protocol),
        ("64:ff9b:1:ffff::1", Class::Protocol),
        ("100::1", Class::Reserved),
        ("2001::1", Class::Protocol),
        ("2001:0:7f00:1::", Class::Protocol),
        ("2001:2::1", Class::Benchmarking),
        ("2001:10::1", Class::Protocol),
        ("2001:1ff:ffff::1", Class::Protocol),
        ("2001:db8::1", Class::Documentation),
        ("2002:7f00:1::", Class::Embedded(Ipv4Addr::LOCALHOST)),
        ("2002:a9fe:a9fe::1", Class::Embedded(Ipv4Addr::new(169, 254, 169, 254))),
        ("3fff::1", Class::Documentation),
        ("3fff:fff::1", Class::Documentation),
        ("5f00::1", Class::Reserved),
        ("fc00::1", Class::Private),
        ("fd00:ec2::254", Class::Private),
        ("fe80::1", Class::LinkLocal),
        ("fec0::1", Class::LinkLocal),
        ("ff02::1", Class::Multicast),
        ("fe00::1", Class::Reserved),
    ] {
        assert_eq!(Class::of(address(text)), class, "{text}");
        assert_eq!(Guard::default().check("hs.example", address(text)), Err(class), "{text}");
    }
    for text in ["1.1.1.1", "100.63.255.255", "100.128.0.0", "172.32.0.0", "198.20.0.0", "223.255.255.255", "9.255.0.0"]
    {
        assert_eq!(Guard::default().check("hs.example", address(text)), Ok(()), "{text}");
    }
    for text in ["2000::1", "2001:200::1", "2001:db9::1", "2003::1", "2a01:4f8::1", "3fff:1000::1", "3ffe::1"] {
        assert_eq!(Guard::default().check("hs.example", address(text)), Ok(()), "{text}");
    }
}

#[test]
fn the_operator_allows_hosts_and_networks_and_nothing_beside_them() {
    let allowed = ["Bridge.internal", "10.1.0.0/16", "127.0.1.7", "fd00::/8", "64:ff9b::/96"];
    let guard = Guard::new(allowed.map(|text| Allowed::try_from(text.to_owned()).unwrap()).into());
    for (host, text) in [
        ("bridge.internal", "192.168.0.9"),
        ("BRIDGE.INTERNAL", "127.0.0.1"),
        ("any.example", "10.1.255.255"),
        ("any.example", "127.0.1.7"),
        ("any.example", "fdff::1"),
        // By a translator to a public address, and to one that is allowed itself.
        ("any.example", "64:ff9b::1.1.1.1"),
        ("any.example", "64:ff9b::10.1.0.1"),
    ] {
        assert_eq!(guard.check(host, address(text)), Ok(()), "{host} {text}");
    }
    for (host, text) in [
        ("not-bridge.internal", "192.168.0.9"),
        ("bridge.internal.example", "192.168.0.9"),
        ("any.example", "10.2.0.0"),
        ("any.example", "127.0.1.8"),
        ("any.example", "64:ff9b::127.0.0.1"),
        ("any.example", "::ffff:10.1.0.1"),
        ("bridge.internal", "0.0.0.0"),
        ("bridge.internal", "::"),
        ("bridge.internal", "224.0.0.1"),
        ("bridge.internal", "255.255.255.255"),
    ] {
        assert!(guard.check(host, address(text)).is_err(), "{host} {text}");
    }
    assert_eq!(Allowed::try_from("10.1.2.3/8".to_owned()), Ok(Allowed::Network("10.0.0.0/8".parse().unwrap())));
    for odd in ["", "*.internal", "https://a", "a b", "10.0.0.0/33", "127.1", "0x7f.1", "user@host", "host:80", "a..b"]
    {
        assert!(Allowed::try_from(odd.to_owned()).is_err(), "{odd}");
    }
}

#[test]
fn a_port_of_a_system_service_is_never_asked() {
    for port in [0, 1, 22, 25, 53, 80, 444, 1023] {
        assert!(!is_federation_port(port), "{port}");
    }
    for port in [443, 1024, 8008, 8448, 65535] {
        assert!(is_federation_port(port), "{port}");
    }
}

#[test]
fn no_other_spelling_of_an_address_is_a_name() {
    for name in ["example.org", "a", "localhost", "xn--bcher-kva.example", "1.2.3.4.example", "0x7f.example", "A-1.b"] {
        assert!(is_host_name(name), "{name}");
    }
    let long = "a".repeat(64);
    for odd in [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "-a",
        "a-",
        "a_b",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0X7F.0X1",
        "0177.0.0.1",
        "1.2.3.4",
        "a.1",
        "a.0x1",
        "a.0x",
        "b\u{fc}cher.example",
        "a%2eb",
        "a b",
        "a/b",
        "a@b",
        "a:1",
        "[::1]",
        "::1",
        "fe80::1%eth0",
        &long,
    ] {
        assert!(!is_host_name(odd), "{odd}");
        assert_eq!(is_web_name(odd), odd == "a_b", "{odd}");
    }
    for name in ["example.org", "mautrix_signal", "my_site.example", "_a.b_", "1_2", "0x_1"] {
        assert!(is_web_name(name), "{name}");
    }
    for odd in ["a_b.1", "a_b.0x1", "-a_b", "a_b-", "a_b.", "a_b:1", "_ "] {
        assert!(!is_web_name(odd), "{odd}");
    }
}

/// Special-purpose networks, at whose edges readers differ.
const EDGES: &[&str] = &[
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "::1/128",
    "::ffff:0:0/96",
    "::ffff:0:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/32",
    "2001::/23",
    "2001:2::/48",
    "2001:db8::/32",
    "2002::/16",
    "2000::/3",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
];

/// Twelve thousand addresses: some of every special network, both sides of each of its edges, and any others.
fn addresses() -> Vec<IpAddr> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut all = Vec::new();
    for edge in EDGES {
        match edge.parse().unwrap() {
            IpNet::V4(network) => {
                let (first, last) = (u32::from(network.network()), u32::from(network.broadcast()));
                let near = [
                    first.wrapping_sub(1),
                    first,
                    first.wrapping_add(1),
                    last.wrapping_sub(1),
                    last,
                    last.wrapping_add(1),
                ];
                let size = u64::from(last - first) + 1;
                let within = (0..150).map(|_| first + (random() % size) as u32).collect::<Vec<_>>();
                all.extend(near.into_iter().chain(within).map(|bits| IpAddr::V4(bits.into())));
            }
            IpNet::V6(network) => {
                let (first, last) = (u128::from(network.network()), u128::from(network.broadcast()));
                let near = [
                    first.wrapping_sub(1),
                    first,
                    first.wrapping_add(1),
                    last.wrapping_sub(1),
                    last,
                    last.wrapping_add(1),
                ];
                let within =
                    (0..150).map(|_| first | ((u128::from(random()) << 64 | u128::from(random())) & (last ^ first)));
                all.extend(near.into_iter().chain(within.collect::<Vec<_>>()).map(|bits| IpAddr::V6(bits.into())));
            }
        }
    }
    all.extend((0..3500).map(|_| IpAddr::V4(((random() >> 7) as u32).into())));
    all.extend((0..3500).map(|_| IpAddr::V6(((u128::from(random()) << 64) | u128::from(random())).into())));
    all
}

/// What is reachable to Python and not to us, on purpose.
fn is_stricter(address: IpAddr) -> bool {
    match Class::of(address) {
        Class::Multicast | Class::Metadata | Class::Protocol | Class::Embedded(_) => true,
        // Python takes whatever nobody gave out as global, and its older releases do not know the newest networks.
        Class::Reserved | Class::LinkLocal | Class::Benchmarking | Class::Documentation => address.is_ipv6(),
        Class::Public | Class::Unspecified | Class::Loopback | Class::Private | Class::Shared | Class::Broadcast => {
            false
        }
    }
}

#[test]
fn nothing_is_public_that_python_says_is_not() {
    let addresses = addresses();
    assert!(addresses.len() > 10_000, "{}", addresses.len());
    let program = "import ipaddress, sys\nfor l in sys.stdin: print(int(ipaddress.ip_address(l.strip()).is_global))";
    let mut python = Command::new("python3")
        .args(["-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("these tests need Python 3.10 or newer");
    let mut input = python.stdin.take().unwrap();
    let lines: String = addresses.iter().map(|address| format!("{address}\n")).collect();
    let feed = std::thread::spawn(move || input.write_all(lines.as_bytes()).unwrap());
    let output = python.wait_with_output().unwrap();
    feed.join().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let verdicts: Vec<bool> = output.lines().map(|line| line == "1").collect();
    assert_eq!(verdicts.len(), addresses.len());
    let mut public = 0;
    for (address, is_global) in addresses.into_iter().zip(verdicts) {
        let passes = Guard::default().check("hs.example", address).is_ok();
        public += usize::from(passes);
        assert!(is_global || !passes, "{address} is not global, and passes");
        assert!(passes || !is_global || is_stricter(address), "{address} is global, and is refused");
    }
    assert!(public > 3000, "only {public} passed at all");
}
