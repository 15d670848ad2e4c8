//! Place and text of a panic, in a fixed buffer: a panic may be due to a lack of memory.

use core::panic::Location;

use crate::bindings::wasi::logging::logging::{self, Level};

/// Longer texts are cut.
const BYTES: usize = 256;
/// Of the longest character.
const CHAR_BYTES: usize = 4;

/// Holds UTF-8.
struct Line {
    bytes: [u8; BYTES],
    len: usize,
}

impl Line {
    /// Appends the characters that fit. Without indexing, which could panic in turn.
    #[inline(never)]
    fn push(&mut self, text: &str) {
        for byte in text.bytes() {
            let begins_character = byte & 0b1100_0000 != 0b1000_0000;
            if begins_character && self.len + CHAR_BYTES > BYTES {
                return;
            }
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
    }

    fn push_number(&mut self, number: u32) {
        if number > 9 {
            self.push_number(number / 10);
        }
        const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
        self.push(DIGITS.get(number as usize % 10).copied().unwrap_or_default());
    }

    fn as_str(&self) -> &str {
        // SAFETY: only whole characters of texts were appended.
        unsafe { core::str::from_utf8_unchecked(self.bytes.get(..self.len).unwrap_or_default()) }
    }
}

/// The text of the panic is used by a feature of its own: it keeps alive the code that words all texts with values, which is
/// 1.5 KB or, with numbers and `Debug`, 30 KB.
#[cfg(feature = "panic-handler")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let text = if cfg!(feature = "panic-text") { info.message().as_str() } else { None };
    tell(info.location(), text);
    core::arch::wasm32::unreachable()
}

/// For functions with `std`, whose panics have all texts.
#[cfg(feature = "std")]
pub(crate) fn hook() {
    std::panic::set_hook(alloc::boxed::Box::new(|info| tell(info.location(), info.payload_as_str())));
}

#[inline(always)]
fn tell(place: Option<&Location<'_>>, text: Option<&str>) {
    let mut line = Line { bytes: [0; BYTES], len: 0 };
    line.push("panicked");
    if let Some(place) = place {
        line.push(" at ");
        line.push(place.file());
        line.push(":");
        line.push_number(place.line());
        line.push(":");
        line.push_number(place.column());
    }
    if let Some(text) = text {
        line.push(": ");
        line.push(text);
    }
    logging::log(Level::Critical, "", line.as_str());
}
