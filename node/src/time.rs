//! Spans and points of time, as people write them.

use hfcache_base::meta::Timestamp;
use std::time::Duration;

/// Parses `90s`, `30m`, `24h`, `7d`.
///
/// # Errors
/// Anything else, in words for who typed it.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no span of time; write 90s, 30m, 24h or 7d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let digits = &text[..text.len() - unit.len_utf8()];
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    match count.checked_mul(seconds) {
        Some(0) => Err("at least 1s".into()),
        Some(s) if s <= 3_650 * 86_400 => Ok(Duration::from_secs(s)),
        _ => Err(format!("{text} is too long; 3650d is the most")),
    }
}

/// So many seconds, as [`parse_span`] takes them.
pub fn span(seconds: u64) -> String {
    let units = [(86_400, 'd'), (3_600, 'h'), (60, 'm')];
    match units.into_iter().find(|(unit, _)| seconds.is_multiple_of(*unit)) {
        Some((unit, letter)) => format!("{}{letter}", seconds / unit),
        None => format!("{seconds}s"),
    }
}

/// This much later.
pub fn later(t: Timestamp, d: Duration) -> Timestamp {
    Timestamp(t.0.saturating_add(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)))
}

/// This much earlier.
pub fn earlier(t: Timestamp, d: Duration) -> Timestamp {
    Timestamp(t.0.saturating_sub(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)))
}

/// `2026-11-21T03:59:13Z`, by Howard Hinnant's civil-from-days.
pub fn utc(t: Timestamp) -> String {
    let seconds = t.0.div_euclid(1_000_000_000);
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (h, m, s) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        assert_eq!(parse_span("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(parse_span("1s"), Ok(Duration::from_secs(1)));
        for bad in ["", "h", "24", "-1h", "1.5h", "0s", "99999d", "24 h", "1w", "18446744073709551615d", "5µ"]
        {
            assert!(parse_span(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_are_said_as_they_are_read() {
        for said in ["90s", "30m", "25h", "7d", "86401s"] {
            assert_eq!(span(parse_span(said).unwrap().as_secs()), said);
        }
        assert_eq!(span(86_400), "1d");
    }

    #[test]
    fn points() {
        assert_eq!(utc(Timestamp(0)), "1970-01-01T00:00:00Z");
        assert_eq!(utc(Timestamp(-1)), "1969-12-31T23:59:59Z");
        assert_eq!(utc(Timestamp(1_709_164_799_000_000_000)), "2024-02-28T23:59:59Z");
        assert_eq!(utc(Timestamp(1_709_251_199_999_999_999)), "2024-02-29T23:59:59Z");
        assert_eq!(utc(Timestamp(1_794_887_953_000_000_000)), "2026-11-17T03:59:13Z");
    }
}
