//! Numbers out of binary payloads: LoRaWAN, BLE advertisements, Modbus registers.
//!
//! ```
//! # use sedge_function::{ReadError, bytes::Reader};
//! # fn read(payload: &[u8]) -> Result<f64, ReadError> {
//! let mut frame = Reader::new(payload);
//! let battery = frame.u8()?;
//! let temperature = f64::from(frame.i16_be()?) / 100.0;
//! # assert_eq!(battery, 97);
//! # Ok(temperature)
//! # }
//! # assert_eq!(read(&[97, 0x08, 0x66]), Ok(21.5));
//! ```

use crate::{ReadError, text};

/// Reads a payload from its first byte to its last. Reading beyond the end is an error with the place.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    length: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, length: bytes.len() }
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Number of bytes before the next one.
    pub fn position(&self) -> usize {
        self.length - self.rest.len()
    }

    /// The next bytes, as many as that.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], ReadError> {
        let Some((bytes, rest)) = self.rest.split_at_checked(count) else { return Err(self.ends(count)) };
        self.rest = rest;
        Ok(bytes)
    }

    pub fn u8(&mut self) -> Result<u8, ReadError> {
        self.array().map(|[byte]| byte)
    }

    pub fn i8(&mut self) -> Result<i8, ReadError> {
        self.u8().map(u8::cast_signed)
    }

    /// A whole number of up to 8 bytes, the highest first.
    pub fn uint_be(&mut self, count: usize) -> Result<u64, ReadError> {
        Ok(self.take(count)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// A whole number of up to 8 bytes, the lowest first.
    pub fn uint_le(&mut self, count: usize) -> Result<u64, ReadError> {
        Ok(self.take(count)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// As [`uint_be`](Self::uint_be), in two's complement.
    pub fn int_be(&mut self, count: usize) -> Result<i64, ReadError> {
        self.uint_be(count).map(|value| signed(value, count))
    }

    /// As [`uint_le`](Self::uint_le), in two's complement.
    pub fn int_le(&mut self, count: usize) -> Result<i64, ReadError> {
        self.uint_le(count).map(|value| signed(value, count))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let Some((bytes, rest)) = self.rest.split_first_chunk() else { return Err(self.ends(N)) };
        self.rest = rest;
        Ok(*bytes)
    }

    #[cold]
    #[inline(never)]
    fn ends(&self, count: usize) -> ReadError {
        let (length, at) = (self.length, self.position());
        ReadError::Unreadable(text!("the payload has ", length, " bytes, and ", count, " are to be read at byte ", at))
    }
}

fn signed(value: u64, count: usize) -> i64 {
    let unused = 64 - 8 * (count.clamp(1, 8) as u32);
    (value << unused).cast_signed() >> unused
}

macro_rules! numbers {
    ($($number:ident $be:ident $le:ident)*) => {
        /// Numbers of 2, 4 and 8 bytes, big-endian (the highest byte first) and little-endian.
        impl Reader<'_> {$(
            pub fn $be(&mut self) -> Result<$number, ReadError> {
                self.array().map($number::from_be_bytes)
            }

            pub fn $le(&mut self) -> Result<$number, ReadError> {
                self.array().map($number::from_le_bytes)
            }
        )*}
    };
}

numbers! {
    u16 u16_be u16_le
    i16 i16_be i16_le
    u32 u32_be u32_le
    i32 i32_be i32_le
    u64 u64_be u64_le
    i64 i64_be i64_le
    f32 f32_be f32_le
    f64 f64_be f64_le
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_both_byte_orders() {
        let bytes = [0xff, 0x01, 0xfe, 0x02, 0xff, 0xff, 0xfe];
        let read = || Reader::new(&bytes);
        assert_eq!(read().u8(), Ok(255));
        assert_eq!(read().i8(), Ok(-1));
        assert_eq!(read().u16_be(), Ok(0xff01));
        assert_eq!(read().i16_le(), Ok(0x01ff));
        assert_eq!(read().i16_be(), Ok(-255));
        assert_eq!(read().uint_be(3), Ok(0xff01fe));
        assert_eq!(read().int_be(3), Ok(-65026));
        assert_eq!(read().uint_le(3), Ok(0xfe01ff));
        assert_eq!(read().int_le(3), Ok(-130_561));
        assert_eq!(read().u32_le(), Ok(0x02fe_01ff));
        assert_eq!(Reader::new(&21.5f32.to_be_bytes()).f32_be(), Ok(21.5));
        assert_eq!(Reader::new(&(-21.5f64).to_le_bytes()).f64_le(), Ok(-21.5));
        assert_eq!(Reader::new(&i64::MIN.to_be_bytes()).int_be(8), Ok(i64::MIN));
    }

    #[test]
    fn a_frame_that_is_cut_off_is_unreadable_with_the_place() {
        let mut frame = Reader::new(&[1, 2, 3]);
        assert_eq!((frame.u8(), frame.position()), (Ok(1), 1));
        let why = "the payload has 3 bytes, and 4 are to be read at byte 1";
        assert_eq!(frame.u32_be(), Err(ReadError::Unreadable(why.into())));
        assert_eq!(frame.take(2), Ok(&[2, 3][..]));
        assert!(frame.is_empty() && frame.u8().is_err() && frame.take(1).is_err() && frame.take(0).is_ok());
    }
}
