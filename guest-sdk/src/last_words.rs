//! Place and text of a panic, in a fixed buffer: a panic may be due to a lack of memory.

use core::panic::Location;

use crate::bindings::wasi::logging::logging::{self, Level};

/// Longer texts are cut.
const BYTES: usize = 320;

struct Line {
    bytes: [u8; BYTES],
    len: usize,
}

impl Line {
    /// Without indexing, which could panic in turn.
    fn push(&mut self, text: &str) {
        for byte in text.bytes() {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
    }

    fn push_number(&mut self, mut number: u32) {
        let mut digits = [0; 10];
        let mut used = 0;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
            used += 1;
            if number == 0 {
                break;
            }
        }
        self.push(digits.get(10 - used..).and_then(|digits| str::from_utf8(digits).ok()).unwrap_or_default());
    }
}

#[cfg(feature = "panic-handler")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    tell(info.location(), info.message().as_str());
    core::arch::wasm32::unreachable()
}

/// For functions with `std`, whose panics have all texts.
#[cfg(feature = "std")]
pub(crate) fn hook() {
    std::panic::set_hook(alloc::boxed::Box::new(|info| tell(info.location(), info.payload_as_str())));
}

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
    // A text that was cut within a character is told up to it.
    let text = match str::from_utf8(line.bytes.get(..line.len).unwrap_or_default()) {
        Ok(text) => text,
        Err(error) => line.bytes.get(..error.valid_up_to()).and_then(|it| str::from_utf8(it).ok()).unwrap_or_default(),
    };
    logging::log(Level::Critical, "", text);
}
