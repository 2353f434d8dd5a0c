//! Reads the end of a certificate's validity: the one field that neither rustls nor webpki shows.

use std::time::{Duration, SystemTime};

/// When the certificate ends; none if the bytes are not a certificate, or it ended before 1970.
///
/// Nothing is decided by this: it is told to the operator. The certificate comes from the operator's own file.
pub fn not_after(certificate: &[u8]) -> Option<SystemTime> {
    // RFC 5280, 4.1: Certificate { TBSCertificate { [0] version?, serial, signature, issuer, validity { .. } .. } .. }
    let (mut certificate, _) = expect(certificate, SEQUENCE)?;
    let mut tbs = take(&mut certificate, SEQUENCE)?;
    if tbs.first() == Some(&VERSION) {
        take(&mut tbs, VERSION)?;
    }
    take(&mut tbs, INTEGER)?;
    take(&mut tbs, SEQUENCE)?;
    take(&mut tbs, SEQUENCE)?;
    let mut validity = take(&mut tbs, SEQUENCE)?;
    let (_, tag, _) = element(validity)?;
    take(&mut validity, tag)?;
    let (text, tag, _) = element(validity)?;
    time(tag, text)
}

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// Cuts an element with that tag from the front.
fn take<'a>(from: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (content, rest) = expect(from, tag)?;
    *from = rest;
    Some(content)
}

fn expect(from: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (content, found, rest) = element(from)?;
    (found == tag).then_some((content, rest))
}

/// The first element's content and tag, and what follows it.
fn element(from: &[u8]) -> Option<(&[u8], u8, &[u8])> {
    let (&tag, rest) = from.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        // The indefinite length of BER, or more than a file can hold.
        0x80 | 0x85.. => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((content, tag, rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` (RFC 5280, 4.1.2.5: always with seconds, always UTC).
fn time(tag: u8, text: &[u8]) -> Option<SystemTime> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let text = match tag {
        UTC_TIME if text.len() == 12 && text < "50" => format!("20{text}"),
        UTC_TIME if text.len() == 12 => format!("19{text}"),
        GENERALIZED_TIME if text.len() == 14 => text.to_owned(),
        _ => return None,
    };
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let part = |range| text.get(range).and_then(|digits: &str| digits.parse::<u64>().ok());
    let (year, month, day) = (part(0..4)?, part(4..6)?, part(6..8)?);
    let (hour, minute, second) = (part(8..10)?, part(10..12)?, part(12..14)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days_before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let in_years: u64 = (1970..year).map(|year| if leap(year) { 366 } else { 365 }).sum();
    let in_months = days_before.get(usize::try_from(month).ok()? - 1)? + u64::from(month > 2 && leap(year));
    let days = in_years + in_months + day - 1;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(days * 86_400 + hour * 3_600 + minute * 60 + second))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(time: SystemTime) -> u64 {
        time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
    }

    fn end_of(year: i32, month: u8, day: u8) -> u64 {
        let mut params = rcgen::CertificateParams::new(["matrix.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, month, day);
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        seconds(not_after(certificate.der()).unwrap())
    }

    #[test]
    fn reads_both_spellings_of_time() {
        // Before 2050 a UTCTime, after it a GeneralizedTime; the seconds are `date -d … +%s`.
        assert_eq!(end_of(2027, 1, 1), 1_798_761_600);
        assert_eq!(end_of(2028, 2, 29), 1_835_395_200);
        assert_eq!(end_of(2028, 3, 1), 1_835_481_600);
        assert_eq!(end_of(2049, 12, 31), 2_524_521_600);
        assert_eq!(end_of(2096, 3, 1), 3_981_398_400);
        assert_eq!(end_of(2100, 3, 1), 4_107_542_400);
    }

    #[test]
    fn reads_hours_minutes_and_seconds() {
        assert_eq!(time(UTC_TIME, b"260821235958Z").map(seconds), Some(1_787_356_798));
        assert_eq!(time(UTC_TIME, b"2608212359Z"), None);
        assert_eq!(time(UTC_TIME, b"26082123595+Z"), None);
        assert_eq!(time(UTC_TIME, b"261321235958Z"), None);
        assert_eq!(time(GENERALIZED_TIME, b"260821235958Z"), None);
    }

    #[test]
    fn no_prefix_of_a_certificate_is_one() {
        let certificate = rcgen::generate_simple_self_signed(["matrix.example".to_owned()]).unwrap();
        let der = certificate.cert.der();
        assert!(not_after(der).is_some());
        for end in 0..der.len() {
            assert_eq!(not_after(&der[..end]), None, "{end}");
        }
    }
}
