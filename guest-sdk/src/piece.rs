use alloc::string::String;

use crate::number::{decimal, push_number};

/// What [`text!`](crate::text!) can put together.
pub trait Piece {
    fn push_to(&self, text: &mut String);
}

impl Piece for str {
    fn push_to(&self, text: &mut String) {
        text.push_str(self);
    }
}

impl Piece for String {
    fn push_to(&self, text: &mut String) {
        text.push_str(self);
    }
}

/// At most 15 significant digits.
impl Piece for f64 {
    fn push_to(&self, text: &mut String) {
        push_number(text, *self);
    }
}

impl Piece for char {
    fn push_to(&self, text: &mut String) {
        text.push(*self);
    }
}

impl Piece for bool {
    fn push_to(&self, text: &mut String) {
        text.push_str(if *self { "true" } else { "false" });
    }
}

impl<P: Piece + ?Sized> Piece for &P {
    fn push_to(&self, text: &mut String) {
        (**self).push_to(text);
    }
}

macro_rules! integers {
    ($($integer:ty)*) => {$(
        impl Piece for $integer {
            fn push_to(&self, text: &mut String) {
                #[allow(unused_comparisons, reason = "some of these integers have no sign")]
                if *self < 0 {
                    text.push('-');
                }
                text.push_str(decimal((*self as i64).unsigned_abs(), &mut [0; 20]));
            }
        }
    )*};
}

integers!(u8 u16 u32 i8 i16 i32 i64);

impl Piece for u64 {
    fn push_to(&self, text: &mut String) {
        text.push_str(decimal(*self, &mut [0; 20]));
    }
}

impl Piece for usize {
    fn push_to(&self, text: &mut String) {
        (*self as u64).push_to(text);
    }
}

/// One text out of several. Reasons and errors are put together here, by one piece of code for all of them.
#[cold]
#[inline(never)]
pub(crate) fn concat(parts: &[&str]) -> String {
    let mut text = String::with_capacity(parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| text.push_str(part));
    text
}

/// Strings, numbers and words, one behind the other: `text!("above ", max, " °C")`. It does what `format!` would do
/// without the 10 KiB of code that formatting numbers brings.
#[macro_export]
macro_rules! text {
    ($($piece:expr),* $(,)?) => {{
        let mut text = $crate::__private::String::new();
        $($crate::Piece::push_to(&$piece, &mut text);)*
        text
    }};
}
