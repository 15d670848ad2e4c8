//! Numbers to and from text, in a few hundred bytes of code: the standard library's versions bring tables of 10 KiB,
//! and a function's memory is set up anew for every message.

use alloc::string::String;

/// The powers of ten that a double holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

/// The number in front of `text` in JSON's grammar (a leading `+` and leading zeros are taken too), and its length.
///
/// The result is the nearest double for up to 19 digits and decimal exponents between -19 and 22, which is all that
/// sensors send. Beyond that it may be off in the last digits.
pub(crate) fn parse_prefix(text: &[u8]) -> Option<(f64, usize)> {
    let mut at = 0;
    let negative = text.first() == Some(&b'-');
    if negative || text.first() == Some(&b'+') {
        at = 1;
    }
    let mut mantissa = 0u64;
    let mut exponent = 0i32;
    let mut digits = 0usize;
    let mut fraction = false;
    while let Some(&byte) = text.get(at) {
        let digit = byte.wrapping_sub(b'0');
        if digit <= 9 {
            digits += 1;
            if mantissa <= (u64::MAX - 9) / 10 {
                mantissa = mantissa * 10 + u64::from(digit);
                exponent -= i32::from(fraction);
            } else {
                exponent += i32::from(!fraction);
            }
        } else if byte == b'.' && !fraction && digits > 0 {
            fraction = true;
        } else {
            break;
        }
        at += 1;
    }
    if digits == 0 || text[at - 1] == b'.' {
        return None;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        let (power, length) = parse_exponent(&text[at + 1..])?;
        exponent = exponent.saturating_add(power);
        at += 1 + length;
    }
    let value = scale(mantissa, exponent);
    Some((if negative { -value } else { value }, at))
}

/// The number that is all of `text`, but for white space around it.
pub(crate) fn parse(text: &[u8]) -> Option<f64> {
    let text = text.trim_ascii();
    parse_prefix(text).filter(|&(_, length)| length == text.len()).map(|(value, _)| value)
}

#[cold]
fn parse_exponent(text: &[u8]) -> Option<(i32, usize)> {
    let negative = text.first() == Some(&b'-');
    let sign = usize::from(negative || text.first() == Some(&b'+'));
    let digits = text[sign..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 {
        return None;
    }
    // Clamped: what is beyond is infinite or zero anyway.
    let value = text[sign..sign + digits]
        .iter()
        .fold(0i32, |value, byte| (value.saturating_mul(10).saturating_add(i32::from(byte - b'0'))).min(9_999));
    Some((if negative { -value } else { value }, sign + digits))
}

fn scale(mantissa: u64, exponent: i32) -> f64 {
    // Both operands are exact, so the one rounding of the operation is the only one (Clinger 1990).
    if mantissa <= 1 << 53 {
        match exponent {
            0 => return mantissa as f64,
            1..=22 => return mantissa as f64 * POWERS[exponent.unsigned_abs() as usize],
            -22..=-1 => return mantissa as f64 / POWERS[exponent.unsigned_abs() as usize],
            _ => {}
        }
    }
    scale_slowly(mantissa, exponent)
}

#[cold]
#[inline(never)]
fn scale_slowly(mantissa: u64, mut exponent: i32) -> f64 {
    if mantissa == 0 {
        return 0.0;
    }
    if (-19..0).contains(&exponent) {
        // 64 significant bits of the quotient, and whether anything is left: enough to round once, correctly.
        let divisor = u128::from(10u64.pow(exponent.unsigned_abs()));
        let shift = 64 + mantissa.leading_zeros();
        let dividend = u128::from(mantissa) << shift;
        let mut quotient = dividend / divisor;
        let rest = dividend % divisor;
        quotient |= u128::from(rest != 0);
        return quotient as f64 * f64::from_bits((1023 - u64::from(shift)) << 52);
    }
    let mut value = mantissa as f64;
    while exponent > 0 && value.is_finite() {
        let step = exponent.min(22);
        value *= POWERS[step.unsigned_abs() as usize];
        exponent -= step;
    }
    while exponent < 0 && value != 0.0 {
        let step = (-exponent).min(22);
        value /= POWERS[step.unsigned_abs() as usize];
        exponent += step;
    }
    value
}

/// Appends a number with at most 15 significant digits: every decimal of up to 15 digits comes out as it went in, and
/// `0.1 + 0.2` as `0.3`. What is no number comes out as `null`, as in JavaScript.
pub(crate) fn push_number(text: &mut String, value: f64) {
    if !value.is_finite() {
        return text.push_str("null");
    }
    let mut magnitude = value;
    if value < 0.0 {
        text.push('-');
        magnitude = -value;
    }
    if magnitude < 1e15 && magnitude == (magnitude as u64) as f64 {
        return push_integer(text, magnitude as u64);
    }
    // Scale to 15 digits before the point; `point` is where the point goes, counted from the first digit.
    let mut point = 15i32;
    let mut scaled = magnitude;
    while scaled >= 1e15 {
        let step = if scaled >= 1e37 { 22 } else { 1 };
        scaled /= POWERS[step];
        point += step as i32;
    }
    if scaled < 1e14 {
        // One multiplication by the right power, so that there is one rounding.
        let mut step = 1;
        while step < 22 && scaled * POWERS[step] < 1e14 {
            step += 1;
        }
        scaled *= POWERS[step];
        point -= step as i32;
        while scaled < 1e14 {
            scaled *= 10.0;
            point -= 1;
        }
    }
    let mut digits = (scaled + 0.5) as u64;
    if digits >= 1_000_000_000_000_000 {
        digits /= 10;
        point += 1;
    }
    let mut count = 15i32;
    while digits % 10 == 0 {
        digits /= 10;
        count -= 1;
    }
    let mut buffer = [0; 20];
    let digits = decimal(digits, &mut buffer);
    if point > 21 || point < -5 {
        text.push_str(&digits[..1]);
        if count > 1 {
            text.push('.');
            text.push_str(&digits[1..]);
        }
        text.push_str(if point > 0 { "e" } else { "e-" });
        push_integer(text, u64::from((point - 1).unsigned_abs()));
    } else if point <= 0 {
        text.push_str("0.");
        (point..0).for_each(|_| text.push('0'));
        text.push_str(digits);
    } else if point >= count {
        text.push_str(digits);
        (count..point).for_each(|_| text.push('0'));
    } else {
        let (whole, fraction) = digits.split_at(point.unsigned_abs() as usize);
        text.push_str(whole);
        text.push('.');
        text.push_str(fraction);
    }
}

pub(crate) fn push_integer(text: &mut String, value: u64) {
    text.push_str(decimal(value, &mut [0; 20]));
}

pub(crate) fn decimal(mut value: u64, buffer: &mut [u8; 20]) -> &str {
    let mut at = buffer.len();
    while at > 0 {
        at -= 1;
        buffer[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    core::str::from_utf8(&buffer[at..]).unwrap_or_default()
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
        for text in ["", "-", ".", ".5", "5.", "1e", "1e+", "nan", "inf", "21.5C", "1 2", "--1", "1.2.3", "0x10"] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
        for (text, value) in [(" 21.5\n", 21.5), ("-0", 0.0), ("+3", 3.0), ("1E2", 100.0), ("1e999", f64::INFINITY)] {
            assert_eq!(parse(text.as_bytes()), Some(value), "{text}");
        }
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
