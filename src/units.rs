//! Durations and sizes as an operator writes them, parsed once.

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A duration in a file: `"10s"`, `"1m 30s"`, `"500ms"`.
///
/// At most a year, so that adding one to the present never overflows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(Duration);

impl Period {
    /// The longest that can be written.
    pub const MAX: Period = Period::seconds(366 * 24 * 60 * 60);

    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// So many milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// The same as what the clock takes.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl From<Period> for Duration {
    fn from(period: Period) -> Self {
        period.0
    }
}

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help = "write a number and a unit: \"500ms\", \"10s\", \"2m\", \"1h\"";
        let period =
            humantime::parse_duration(text).map(Self).map_err(|_| format!("{text:?} is not a duration\n{help}"))?;
        if period > Self::MAX { Err(format!("{text:?} is more than a year")) } else { Ok(period) }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = Period;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"10s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Period, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Period, E> {
                Err(E::custom(format!(
                    "{number} has no unit\nwrite \"{number}s\" for seconds, \"{number}ms\" for milliseconds"
                )))
            }
        }
        deserializer.deserialize_any(Written)
    }
}

/// A number of bytes in a file: `"64KiB"`, `"50MiB"`, `"1MB"`, or a plain integer of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    /// So many bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many times 1024 bytes.
    pub const fn kib(kib: u64) -> Self {
        Self(kib * bytesize::KIB)
    }

    /// So many times 1024 KiB.
    pub const fn mib(mib: u64) -> Self {
        Self(mib * bytesize::MIB)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number of bytes as a length in memory; what does not fit is as much as fits.
    pub fn len(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// Whether it is no byte at all.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help = "write a number and a unit: \"512B\", \"64KiB\", \"50MiB\"";
        let size = text.parse::<bytesize::ByteSize>().map_err(|_| format!("{text:?} is not a size\n{help}"))?;
        // The parser saturates instead of refusing.
        if size.0 == u64::MAX { Err(format!("{text:?} is more than can be counted")) } else { Ok(Self(size.0)) }
    }
}

impl fmt::Display for Size {
    /// In the largest unit that needs no fraction, so that reading it gives the same number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(bytesize::TIB, "TiB"), (bytesize::GIB, "GiB"), (bytesize::MIB, "MiB"), (bytesize::KIB, "KiB")];
        match units.iter().find(|(unit, _)| self.0 != 0 && self.0.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"64KiB\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(|_| E::custom(format!("{bytes} is less than nothing")))
            }
        }
        deserializer.deserialize_any(Written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_prints_as_it_reads() {
        for text in ["0s", "500ms", "10s", "1m 30s", "2h", "1day"] {
            let period: Period = text.parse().unwrap();
            assert_eq!(period.to_string().parse(), Ok(period), "{text}");
        }
        assert_eq!("1m30s".parse(), Ok(Period::seconds(90)));
        assert_eq!(Period::seconds(90).to_string(), "1m 30s");
    }

    #[test]
    fn a_period_needs_a_unit_and_an_end() {
        for text in ["", "10", "s", "-1s", "10x", "1e3s", "99999999999999999999s"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
        assert_eq!("2years".parse::<Period>(), Err("\"2years\" is more than a year".into()));
        assert!("584542046090y".parse::<Period>().is_err());
    }

    #[test]
    fn a_size_prints_as_it_reads() {
        for bytes in [0, 1, 1000, 1023, 1024, 15 * 1024, 50 * 1024 * 1024, 1 << 40, (1 << 53) + 1, u64::MAX - 1] {
            let size = Size::bytes(bytes);
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        assert_eq!("15KiB".parse(), Ok(Size::kib(15)));
        assert_eq!("1MB".parse(), Ok(Size::bytes(1_000_000)));
        assert_eq!("1.5 KiB".parse(), Ok(Size::bytes(1536)));
        assert_eq!("4096".parse(), Ok(Size::bytes(4096)));
        assert_eq!(Size::kib(15).to_string(), "15KiB");
    }

    #[test]
    fn a_size_that_cannot_be_counted_is_refused() {
        for text in ["", "KiB", "-1B", "10 parsecs", "1.2.3KiB", "99999999999TiB", "9e9e9e9EiB", "1😀😀"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
