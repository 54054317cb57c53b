//! The one thing that a person wants to know of a certificate that was verified: until when it is good.

/// The last day of a certificate in DER (RFC 5280 §4.1.2.5), such as `2027-01-31`; none where it is not one.
pub(super) fn last_day(certificate: &[u8]) -> Option<String> {
    const VERSION: u8 = 0xa0;
    let (_, certificate, _) = element(certificate)?;
    let (_, mut to_be_signed, _) = element(certificate)?;
    if to_be_signed.first() == Some(&VERSION) {
        (_, _, to_be_signed) = element(to_be_signed)?;
    }
    // Serial number, signature algorithm, issuer.
    for _ in 0..3 {
        (_, _, to_be_signed) = element(to_be_signed)?;
    }
    let (_, validity, _) = element(to_be_signed)?;
    let (_, _, not_after) = element(validity)?;
    let (tag, time, _) = element(not_after)?;
    day(tag, std::str::from_utf8(time).ok()?)
}

fn day(tag: u8, time: &str) -> Option<String> {
    const UTC_TIME: u8 = 0x17;
    const GENERALIZED_TIME: u8 = 0x18;
    let is_whole = time.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let (century, rest) = match tag {
        // Two digits of the year: 1950 to 2049.
        UTC_TIME if time < "50" => ("20", time),
        UTC_TIME => ("19", time),
        GENERALIZED_TIME => (time.get(..2)?, time.get(2..)?),
        _ => return None,
    };
    let (year, month, day) = (rest.get(..2)?, rest.get(2..4)?, rest.get(4..6)?);
    is_whole.then(|| format!("{century}{year}-{month}-{day}"))
}

/// The tag and the content of the first element, and what comes after it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if !(1..=4).contains(&digits.len()) {
            return None;
        }
        let length = digits
            .iter()
            .fold(0, |length, digit| length << 8 | usize::from(*digit));
        (length, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(year: i32, month: u8, day: u8) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, month, day);
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_last_day_is_read_in_both_forms() {
        for (date, text) in [
            ((2027, 1, 31), "2027-01-31"),
            ((2049, 12, 31), "2049-12-31"),
            ((2050, 2, 1), "2050-02-01"),
            ((4096, 1, 1), "4096-01-01"),
        ] {
            let (year, month, day) = date;
            let der = certificate(year, month, day);
            assert_eq!(last_day(&der).as_deref(), Some(text));
            // Whatever is cut off, it is no reason to panic.
            for length in 0..der.len() {
                last_day(&der[..length]);
            }
        }
        assert_eq!(last_day(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0]), None);
        assert_eq!(day(0x17, "260131ä"), None);
    }
}
