//! Every way to write a host that nobody may reach, or to lead to one.

use std::net::Ipv4Addr;

use super::outside::Dns;

/// Makes spellings, each time the same ones.
pub struct Spellings {
    state: u64,
    names: u64,
}

/// What is within: this machine first, for that is where a test can see whether it is reached.
const INSIDE: [u32; 8] = [0x7f00_0001, 0x7f00_0002, 0x7f00_0001, 0, 0x0a00_0001, 0xa9fe_a9fe, 0xc0a8_0001, 0x6464_64c8];

impl Spellings {
    pub fn new(seed: u64) -> Self {
        Self { state: 0x9E37_79B9_7F4A_7C15 ^ (seed << 1), names: 0 }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % below
    }

    fn choose<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.random(from.len() as u64) as usize]
    }

    fn inside(&mut self) -> u32 {
        INSIDE[self.random(INSIDE.len() as u64) as usize]
    }

    /// An address as some reader reads it: parts in any base, few or many, in the clothes of IPv6, with what may stand around it.
    pub fn address(&mut self) -> String {
        let address = self.inside();
        let plain = Ipv4Addr::from(address);
        let [a, b, c, d] = address.to_be_bytes().map(u32::from);
        let (high, low, noise) = (address >> 16, address & 0xffff, self.random(0xffff));
        match self.random(27) {
            0 => format!("[::ffff:{high:x}:{low:x}]"),
            1 => format!("[0:0:0:0:0:FFFF:{plain}]"),
            2 => format!("[::{high:X}:{low:x}]"),
            3 => format!("[64:ff9b::{high:x}:{low:x}]"),
            4 => format!("[64:ff9b:1:{noise:x}::{plain}]"),
            5 => format!("[2002:{high:x}:{low:x}::{noise:x}]"),
            6 => format!("[2001:0:{high:x}:{low:x}::{noise:x}]"),
            7 => format!("[fe80::{noise:x}%25lo]"),
            8 => format!("[::1%{}]", self.choose(&["lo", "25lo", "1", "eth0", "25"])),
            9 => self
                .choose(&["[::1]", "[0:0:0:0:0:0:0:1]", "[0000:0000::0001]", "[::]", "[::0.0.0.1]", "::1", "::"])
                .into(),
            10 => format!("[fd{:02x}:{noise:x}::1]", a & 0xff),
            11 => format!("::ffff:{plain}"),
            12 => format!("{}@{plain}", self.choose(&["user", "user:secret", "push.test", "hs.test:443", "", "%40"])),
            13 => format!("hs.test{}@{plain}", self.choose(&["#", "?", "/", "\\", "%23", "%2f", ":443", ";", "&"])),
            14 => {
                format!("{plain}{}hs.test", self.choose(&["#", "?", "/", "\\", "%00", "%23", ",", ";", "@", "%0d%0a"]))
            }
            15 => format!("{plain}."),
            16 => plain.to_string().replace('.', self.choose(&["。", "．", "｡", "%2e", "%E3%80%82", "․", ".."])),
            17 => plain.to_string().chars().map(|c| wide(c, noise)).collect(),
            18 => plain.to_string().chars().map(circled).collect(),
            19 => plain.to_string().chars().map(|c| if c == '.' { ".".into() } else { format!("%3{c}") }).collect(),
            20 => format!("{}.{}.{}.{}", a + 256, b + 256, c + 256, d + 256),
            _ => self.dotted(address),
        }
    }

    fn dotted(&mut self, address: u32) -> String {
        let [a, b, c, d] = address.to_be_bytes().map(u32::from);
        let parts = match self.random(4) {
            0 => vec![address],
            1 => vec![a, address & 0xff_ffff],
            2 => vec![a, b, address & 0xffff],
            _ => vec![a, b, c, d],
        };
        let parts: Vec<_> = parts.into_iter().map(|part| self.part(part)).collect();
        parts.join(".") + if self.random(8) == 0 { "." } else { "" }
    }

    fn part(&mut self, part: u32) -> String {
        let zeros = self.random(6) as usize;
        match self.random(6) {
            0 => format!("{part:#x}"),
            1 => format!("0X{part:X}"),
            2 => format!("0{part:o}"),
            3 => format!("{}{part}", "0".repeat(zeros)),
            4 => format!("0x{}{part:x}", "0".repeat(zeros)),
            _ => part.to_string(),
        }
    }

    /// A name that leads there, whatever it says of itself: one address or several, IPv6 in the clothes of IPv4, a chain of names,
    /// one without an end.
    pub fn name(&mut self, dns: &Dns) -> String {
        self.names += 1;
        let number = self.names;
        let address = Ipv4Addr::from(self.inside());
        let name = match self.random(8) {
            0 => format!("{address}.{number}.inside.test"),
            1 => format!("www.matrix.org.{number}.inside.test"),
            2 => format!("xn--lclhost-{number}.inside.test"),
            3 => format!("LOCALHOST-{number}.Inside.Test"),
            _ => format!("n{number}.inside.test"),
        };
        let (high, low) = (u32::from(address) >> 16, u32::from(address) & 0xffff);
        match self.random(12) {
            0 => dns.address(&name, "::1"),
            1 => dns.address(&name, &format!("::ffff:{address}")),
            2 => dns.address(&name, &format!("64:ff9b::{high:x}:{low:x}")),
            3 => dns.address(&name, &format!("2002:{high:x}:{low:x}::1")),
            4 => dns.address(&name, &format!("::{high:x}:{low:x}")),
            5 => dns.address(&name, &format!("2001:0:{high:x}:{low:x}::1")),
            6 => {
                dns.address(&name, "127.0.0.2");
                dns.address(&name, "::1");
                dns.address(&name, "fd00::1");
            }
            7 => {
                let ends = format!("end.{number}.inside.test");
                let chain: Vec<_> = (0..=self.random(5)).map(|link| format!("c{link}.{number}.inside.test")).collect();
                dns.alias(&name, &chain[0]);
                chain.windows(2).for_each(|pair| dns.alias(&pair[0], &pair[1]));
                dns.alias(&chain[chain.len() - 1], &ends);
                dns.address(&ends, &address.to_string());
            }
            8 => {
                let other = format!("round.{number}.inside.test");
                dns.alias(&name, &other);
                dns.alias(&other, &name);
            }
            _ => dns.address(&name, &address.to_string()),
        }
        name
    }

    /// Either.
    pub fn host(&mut self, dns: &Dns) -> String {
        match self.random(3) {
            0 => self.name(dns),
            1 if self.random(20) == 0 => self
                .choose(&[
                    "localhost",
                    "LocalHost",
                    "localhost.",
                    "a.localhost",
                    "ip6-localhost",
                    "localhost.localdomain",
                ])
                .into(),
            _ => self.address(),
        }
    }
}

/// A digit as wide as an ideograph, now and then: IDNA makes plain ones of them.
fn wide(c: char, noise: u64) -> String {
    let offset = c as u32 - '.' as u32;
    match char::from_u32('．' as u32 + offset).filter(|_| noise & 1 == 0 || c != '.') {
        Some(wide) => wide.to_string(),
        None => c.to_string(),
    }
}

/// A digit in a circle.
fn circled(c: char) -> String {
    match c.to_digit(10) {
        Some(0) => "⓪".into(),
        Some(digit) => char::from_u32('①' as u32 + digit - 1).map_or_else(|| c.to_string(), String::from),
        None => c.to_string(),
    }
}
