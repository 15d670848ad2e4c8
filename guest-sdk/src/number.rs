//! Numbers to and from text, in a few hundred bytes of code: the standard library's versions bring tables of 10 KiB,
//! and a function's memory is set up anew for every message.

use alloc::string::String;

/// The powers of ten that a double holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

// Nothing here indexes or slices in a way that could panic: one place that can brings the code that words the panic,
// which is larger than all of this.
fn power(exponent: u32) -> f64 {
    POWERS.get(exponent as usize).copied().unwrap_or(f64::INFINITY)
}

/// The number in front of `text`, and what follows it: JSON's grammar, and what every language reads beside it (`+1`, `007`,
/// `.5`, `81.`).
///
/// The result is the nearest double for up to 19 digits and decimal exponents between -19 and 22, which is all that
/// sensors send. Beyond that it may be off in the last digits, and is infinite where a double cannot hold it.
pub(crate) fn parse_prefix(text: &[u8]) -> Option<(f64, &[u8])> {
    let (negative, mut rest) = sign(text);
    let mut mantissa = 0u64;
    let mut exponent = 0i32;
    let mut fraction = false;
    let mut digits = false;
    while let Some((&byte, tail)) = rest.split_first() {
        let digit = byte.wrapping_sub(b'0');
        if digit <= 9 {
            digits = true;
            if mantissa <= (u64::MAX - 9) / 10 {
                mantissa = mantissa * 10 + u64::from(digit);
                exponent -= i32::from(fraction);
            } else {
                exponent = exponent.saturating_add(i32::from(!fraction));
            }
        } else if byte == b'.' && !fraction {
            fraction = true;
        } else {
            break;
        }
        rest = tail;
    }
    if !digits {
        return None;
    }
    if let Some((b'e' | b'E', tail)) = rest.split_first() {
        let (power, tail) = parse_exponent(tail)?;
        exponent = exponent.saturating_add(power);
        rest = tail;
    }
    let value = scale(mantissa, exponent);
    Some((if negative { -value } else { value }, rest))
}

/// The number that is all of `text`, but for white space around it.
pub(crate) fn parse(text: &[u8]) -> Option<f64> {
    let all = |text| parse_prefix(text).filter(|(_, rest)| rest.is_empty()).map(|(value, _)| value);
    // Mostly there is no white space, and looking for it costs as much as the number.
    all(text).or_else(|| all(text.trim_ascii())).filter(|value| value.is_finite())
}

/// The whole number that is all of `text`, perhaps with zeros behind a point. `Some(None)` if 64 bits cannot hold it.
pub(crate) fn parse_integer(text: &[u8]) -> Option<Option<i128>> {
    let (negative, digits) = sign(text);
    let whole = digits.split(|byte| *byte == b'.').next()?;
    if let Some(fraction) = digits.get(whole.len() + 1..)
        && (fraction.is_empty() || fraction.iter().any(|byte| *byte != b'0'))
    {
        return None;
    }
    if whole.is_empty() || digits.len() == whole.len() + 1 || !whole.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |value: u64, digit: &u8| value.checked_mul(10)?.checked_add(u64::from(digit - b'0'));
    let value = whole.iter().try_fold(0, add).map(i128::from);
    Some(value.map(|value| if negative { -value } else { value }))
}

fn sign(text: &[u8]) -> (bool, &[u8]) {
    match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        _ => (false, text),
    }
}

#[cold]
fn parse_exponent(text: &[u8]) -> Option<(i32, &[u8])> {
    let (negative, mut rest) = sign(text);
    let mut value = None;
    while let Some((byte @ b'0'..=b'9', tail)) = rest.split_first() {
        // Capped: what is beyond is infinite or zero anyway.
        value = Some((value.unwrap_or(0) * 10 + i32::from(byte - b'0')).min(9_999));
        rest = tail;
    }
    value.map(|value| (if negative { -value } else { value }, rest))
}

fn scale(mantissa: u64, exponent: i32) -> f64 {
    // Both operands are exact, so the one rounding of the operation is the only one (Clinger 1990).
    if mantissa <= 1 << 53 {
        match exponent {
            0 => return mantissa as f64,
            1..=22 => return mantissa as f64 * power(exponent.unsigned_abs()),
            -22..=-1 => return mantissa as f64 / power(exponent.unsigned_abs()),
            _ => {}
        }
    }
    scale_slowly(mantissa, exponent)
}

#[cold]
#[inline(never)]
fn scale_slowly(mantissa: u64, mut exponent: i32) -> f64 {
    if (-19..0).contains(&exponent) {
        // Long division in binary, to 64 digits and a last one that says whether anything is left: enough to round
        // once, correctly, where the quotient becomes a double.
        let divisor = (exponent..0).fold(1u64, |divisor, _| divisor.wrapping_mul(10));
        let (mut quotient, mut rest) = (mantissa / divisor, mantissa % divisor);
        let mut unit = 1.0;
        while rest != 0 && quotient < 1 << 63 {
            let carry = rest >= 1 << 63;
            rest <<= 1;
            quotient <<= 1;
            unit *= 0.5;
            if carry || rest >= divisor {
                rest = rest.wrapping_sub(divisor);
                quotient |= 1;
            }
        }
        return (quotient | u64::from(rest != 0)) as f64 * unit;
    }
    let mut value = mantissa as f64;
    while exponent > 0 && value.is_finite() && value != 0.0 {
        value *= 10.0;
        exponent -= 1;
    }
    while exponent < 0 && value != 0.0 {
        value /= 10.0;
        exponent += 1;
    }
    value
}

/// A value for people: rounded to so many decimals, at most 22.
pub fn rounded(value: f64, decimals: u32) -> f64 {
    let scaled = value * power(decimals);
    // Beyond this a double has no decimals left to round.
    if scaled.is_nan() || scaled.abs() >= 1e15 {
        return value;
    }
    (scaled + if scaled < 0.0 { -0.5 } else { 0.5 }) as i64 as f64 / power(decimals)
}

/// Appends a number with at most 15 significant digits: every decimal of up to 15 digits comes out as it went in, and `0.1 + 0.2` as
/// `0.3`. A whole number up to 2^53 has all of its digits. What is no number comes out as `null`, as in JavaScript.
#[inline(never)]
pub(crate) fn push_number(text: &mut String, value: f64) {
    if !value.is_finite() {
        return text.push_str("null");
    }
    if value < 0.0 {
        text.push('-');
    }
    let (mut digits, mut exponent) = fifteen_digits(value.abs());
    while digits != 0 && digits % 10 == 0 {
        digits /= 10;
        exponent += 1;
    }
    let mut buffer = [0; 20];
    let digits = decimal(digits, &mut buffer);
    // Where the point goes, counted from the first digit.
    let point = digits.len() as i32 + exponent;
    if !(-5..=21).contains(&point) {
        push_with_point(text, digits, 1);
        text.push('e');
        if point < 1 {
            text.push('-');
        }
        text.push_str(decimal(u64::from((point - 1).unsigned_abs()), &mut [0; 20]));
    } else if point <= 0 {
        text.push_str("0.");
        (point..0).for_each(|_| text.push('0'));
        text.push_str(digits);
    } else {
        push_with_point(text, digits, point.unsigned_abs() as usize);
        (0..exponent).for_each(|_| text.push('0'));
    }
}

fn push_with_point(text: &mut String, digits: &str, point: usize) {
    match digits.split_at_checked(point) {
        Some((whole, fraction)) if !fraction.is_empty() => {
            text.push_str(whole);
            text.push('.');
            text.push_str(fraction);
        }
        _ => text.push_str(digits),
    }
}

/// `value`, which is not negative, as a whole number of at most 16 digits times a power of ten.
fn fifteen_digits(mut value: f64) -> (u64, i32) {
    // Whole numbers up to here are exact, so that all digits count.
    if value <= (1u64 << 53) as f64 && value == (value as u64) as f64 {
        return (value as u64, 0);
    }
    let mut exponent = 0;
    while value >= 1e22 {
        value /= 10.0;
        exponent += 1;
    }
    while value < 1e-7 {
        value *= 10.0;
        exponent -= 1;
    }
    // One operation with an exact power, so that there is one rounding.
    let mut whole = POWERS.iter().take_while(|power| **power <= value).count() as i32;
    if whole == 0 {
        while value * power(whole.unsigned_abs()) < 0.1 {
            whole -= 1;
        }
    }
    let shift = 15 - whole;
    let shifted = if shift < 0 { value / power(shift.unsigned_abs()) } else { value * power(shift.unsigned_abs()) };
    ((shifted + 0.5) as u64, exponent - shift)
}

/// A number in decimal, at the end of `buffer`.
#[inline(never)]
pub(crate) fn decimal(mut value: u64, buffer: &mut [u8; 20]) -> &str {
    let mut start = buffer.len();
    for digit in buffer.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
        start -= 1;
        if value == 0 {
            break;
        }
    }
    let digits = buffer.get(start..).unwrap_or_default();
    // SAFETY: the loop wrote ASCII digits from `start` on. The checked conversion would be a tenth of a small function.
    unsafe { core::str::from_utf8_unchecked(digits) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString;

    fn show(value: f64) -> String {
        let mut text = String::new();
        push_number(&mut text, value);
        text
    }

    /// A stream of numbers that is the same on every run.
    fn random(seed: &mut u64) -> u64 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed
    }

    #[test]
    fn parses_like_the_standard_library() {
        let mut seed = 0x5ed6e;
        for round in 0..200_000 {
            let whole = random(&mut seed) >> (random(&mut seed) % 64);
            let fraction = random(&mut seed) % 10u64.pow(1 + (random(&mut seed) % 12) as u32);
            let text = match round % 4 {
                0 => format!("{whole}"),
                1 => format!("-{}.{fraction}", whole % 10_000_000),
                2 => format!("{}.{fraction}e{}", whole % 1000, random(&mut seed) % 10),
                _ => format!("{}", f64::from_bits(whole) % 1e6).chars().take(19).collect(),
            };
            let (Ok(expected), Some(got)) = (text.parse::<f64>(), parse(text.as_bytes())) else { continue };
            if text.contains('e') && expected != got {
                assert!((expected / got - 1.0).abs() < 1e-15, "{text}: {got} is not {expected}");
            } else if text.bytes().filter(u8::is_ascii_digit).count() <= 19 {
                assert_eq!(got, expected, "{text}");
            }
        }
    }

    #[test]
    fn refuses_what_is_no_number() {
        for text in [
            "", "-", ".", "-.", ".e1", "1e", "1e+", "nan", "inf", "21.5C", "1 2", "--1", "1.2.3", "0x10", "1e999",
            "81,5",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
        for (text, value) in [
            (" 21.5\n", 21.5),
            ("-0", 0.0),
            ("+3", 3.0),
            ("1E2", 100.0),
            ("1e-999", 0.0),
            (".5", 0.5),
            ("-.5", -0.5),
            ("81.", 81.0),
            ("1.e2", 100.0),
        ] {
            assert_eq!(parse(text.as_bytes()), Some(value), "{text}");
        }
    }

    #[test]
    fn rounds_away_from_zero() {
        assert_eq!(rounded(21.449, 1), 21.4);
        assert_eq!(rounded(-21.45, 1), -21.5);
        assert_eq!(rounded(1e300, 2), 1e300);
        assert!(rounded(f64::NAN, 2).is_nan());
    }

    #[test]
    fn writes_what_a_person_would_write() {
        for (value, text) in [
            (0.0, "0"),
            (21.5, "21.5"),
            (-3.25, "-3.25"),
            (0.1 + 0.2, "0.3"),
            (272.0 * 0.1, "27.2"),
            (100.0, "100"),
            (9_007_199_254_740_991.0, "9007199254740991"),
            (-9_007_199_254_740_992.0, "-9007199254740992"),
            (1e20, "100000000000000000000"),
            (1e21, "1e21"),
            (0.00012, "0.00012"),
            (1.5e-9, "1.5e-9"),
            (999_999.999_999_999_9, "1000000"),
            (f64::NAN, "null"),
        ] {
            assert_eq!(show(value), text);
        }
        let mut seed = 0x5ed6e;
        for _ in 0..100_000 {
            let digits = random(&mut seed) % 10u64.pow(1 + (random(&mut seed) % 15) as u32);
            let value = digits as f64 / POWERS[(random(&mut seed) % 12) as usize];
            assert_eq!(show(value).parse::<f64>(), Ok(value), "{value}");
        }
        assert_eq!(show(f64::MAX).parse::<f64>().map(|value| value > 1.79e308), Ok(true));
        assert_eq!(show(u64::MAX as f64 / 3.0).to_string(), "6148914691236520000");
    }
}
