//! Numbers of bytes, as people write them.

/// Parses `4096`, `10GiB`, `1.5T`, `500 MB`: powers of 1024 with `i` or without a `B`, of 1000 with a `B` alone.
///
/// # Errors
/// Anything else, in words for who typed it.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no number of bytes; write 4096, 500MB, 10GiB or 1.5TiB");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (text[..split].trim(), text[split..].trim());
    let (base, power): (u128, u32) = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => (1, 0),
        "k" | "ki" | "kib" => (1024, 1),
        "m" | "mi" | "mib" => (1024, 2),
        "g" | "gi" | "gib" => (1024, 3),
        "t" | "ti" | "tib" => (1024, 4),
        "p" | "pi" | "pib" => (1024, 5),
        "kb" => (1000, 1),
        "mb" => (1000, 2),
        "gb" => (1000, 3),
        "tb" => (1000, 4),
        "pb" => (1000, 5),
        _ => return Err(wrong()),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    // A fraction of a byte is nobody's wish.
    let fraction_fits = part.len() <= 6 && (part.is_empty() || power > 0) && !number.ends_with('.');
    if whole.is_empty() || whole.len() > 20 || !fraction_fits || part.contains('.') {
        return Err(wrong());
    }
    let scale = base.pow(power);
    let whole: u128 = whole.parse().map_err(|_| wrong())?;
    let part: u128 = format!("{part:0<6}").parse().map_err(|_| wrong())?;
    let bytes = whole * scale + part * scale / 1_000_000;
    u64::try_from(bytes).map_err(|_| format!("{text} is more than can be counted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("12B", 12),
            ("1k", 1024),
            ("10GiB", 10 << 30),
            ("10 gib", 10 << 30),
            ("1.5T", 3 << 39),
            ("500MB", 500_000_000),
            ("16PiB", 16 << 50),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for bad in ["", "GiB", "-1", "1.2.3k", "1.", ".5G", "1.5", "1e9", "10 elephants", "99999999PiB", "½G"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&"9".repeat(400)).is_err());
    }
}
