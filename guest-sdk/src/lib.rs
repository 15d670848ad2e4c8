//! Write functions for Sedge: small WebAssembly components that handle one sensor message at a time.
//!
//! ```
//! use sedge_function::prelude::*;
//!
//! struct TooWarm;
//!
//! impl Function for TooWarm {
//!     fn handle(message: Message) -> Outcome {
//!         let Some(value) = message.number("temperature")? else { return Ok(vec![]) };
//!         if value <= setting("max")? {
//!             return Ok(vec![]);
//!         }
//!         Ok(vec![Alert::firing(message.topic, "too warm").value(value).into()])
//!     }
//! }
//!
//! export!(TooWarm);
//! ```
//!
//! A function causes no effect itself: it returns what it wants done. Every message gets a fresh instance, so nothing in
//! memory survives; what must survive is [`state`]. `sedge build` turns the crate into a component; natively,
//! `testing::Board` runs it in unit tests.
//!
//! The crate is a `cdylib`. With `#![no_std]` and this crate's feature `panic-handler` a panic tells the host its place; with
//! `panic-text` also its text, if that has no values, which costs 1.5 KB or, where a number or a `Debug` is in any text, 30 KB. A
//! function with `std` has the feature `std` instead, for place and every text; for the target `wasm32-wasip2`, `std` also prints to the
//! board's log and reads the time.

#![no_std]

extern crate alloc;
#[cfg(any(not(target_family = "wasm"), feature = "std"))]
extern crate std;

// The C library of WASI has an allocator, which would hand out the same memory.
#[cfg(all(target_family = "wasm", feature = "bump-allocator", not(target_os = "wasi")))]
#[allow(unsafe_code, reason = "it hands out memory")]
mod allocator;
#[allow(
    unsafe_code,
    unreachable_pub,
    unused_macros,
    unused_imports,
    unused_qualifications,
    dead_code,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::mem_forget,
    clippy::undocumented_unsafe_blocks,
    clippy::uninlined_format_args,
    clippy::unwrap_used,
    reason = "generated; see guest-sdk/generate"
)]
#[rustfmt::skip]
mod bindings;
pub mod base64;
pub mod bytes;
pub mod cbor;
pub mod clock;
pub mod hex;
#[allow(unsafe_code, reason = "it keeps the one handle of the state's bucket")]
mod host;
mod json;
#[cfg(all(target_family = "wasm", any(feature = "panic-handler", feature = "std")))]
#[allow(unsafe_code, reason = "the line holds whole characters")]
mod last_words;
pub mod log;
pub mod lpp;
pub mod math;
mod message;
#[allow(unsafe_code, reason = "digits are known to be UTF-8")]
mod number;
mod output;
mod piece;
pub mod random;
mod read;
#[doc(hidden)]
#[allow(unsafe_code, reason = "the canonical ABI passes raw blocks")]
pub mod rt;
mod setting;
mod silence;
pub mod state;
#[cfg(not(target_family = "wasm"))]
pub mod testing;
pub mod time;

pub use bindings::exports::sedge::function::handler::{
    Alert, AlertStatus, Failure, Message, Output, Publication, Reply, Retry, Severity, Wake,
};
pub use json::{Items, JsonArray, JsonObject, Members, Reading, Value};
pub use number::rounded;
pub use piece::Piece;
pub use read::{NumberFormat, ReadError};
pub use setting::{Section, Setting, setting, setting_or};
pub use silence::Silence;

/// What most functions use, with the parts of `alloc` that a `#![no_std]` crate does not have by itself.
pub mod prelude {
    pub use alloc::string::{String, ToString};
    pub use alloc::vec::Vec;
    pub use alloc::{format, vec};

    pub use crate::{
        Alert, Failure, Function, JsonArray, JsonObject, Message, NumberFormat, Outcome, Output, Publication,
        ReadError, Reading, export, rounded, setting, setting_or, state, text,
    };
}

/// The outputs, or why there are none.
pub type Outcome = Result<alloc::vec::Vec<Output>, Failure>;

/// What a crate gives to [`export!`].
pub trait Function {
    /// Handles one message. Outputs and state changes count only when it returns `Ok`, and then all of them do.
    fn handle(message: Message) -> Outcome;
}

/// Makes a type that is a [`Function`] the component's one export.
///
/// The canonical ABI's post-return function, which would free what the call returned, is left out: the instance ends
/// with the call.
#[macro_export]
macro_rules! export {
    ($function:ty) => {
        const _: fn($crate::Message) -> $crate::Outcome = <$function as $crate::Function>::handle;

        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, clippy::undocumented_unsafe_blocks, reason = "the canonical ABI's exports")]
        const _: () = {
            #[unsafe(export_name = "sedge:function/handler@0.2.0#handle")]
            unsafe extern "C" fn handle(message: *mut u8) -> *mut u8 {
                unsafe { $crate::__private::call::<$function>(message) }
            }

            #[unsafe(export_name = "cabi_realloc")]
            unsafe extern "C" fn realloc(old: *mut u8, old_len: usize, align: usize, new_len: usize) -> *mut u8 {
                unsafe { $crate::rt::realloc(old, old_len, align, new_len) }
            }

            // Tells any component encoder what the function is, in the encoding of `wit-component`. With `#[used]` it would
            // be in the function's memory too.
            #[unsafe(link_section = "component-type:sedge-function:0.2.0")]
            pub static COMPONENT_TYPE: [u8; $crate::__private::COMPONENT_TYPE.len()] =
                *$crate::__private::COMPONENT_TYPE;
        };
    };
}

#[doc(hidden)]
pub mod __private {
    pub use alloc::string::String;

    #[cfg(target_family = "wasm")]
    pub use crate::bindings::exports::sedge::function::handler::_export_handle_cabi as call;

    #[cfg(not(target_os = "wasi"))]
    pub const COMPONENT_TYPE: &[u8; include_bytes!("component-type.bin").len()] = include_bytes!("component-type.bin");
    #[cfg(target_os = "wasi")]
    pub const COMPONENT_TYPE: &[u8; include_bytes!("component-type-with-std.bin").len()] =
        include_bytes!("component-type-with-std.bin");
}

impl<F: Function> bindings::exports::sedge::function::handler::Guest for F {
    #[inline]
    fn handle(message: Message) -> Outcome {
        #[cfg(all(target_family = "wasm", feature = "std"))]
        last_words::hook();
        F::handle(message).map(output::without_infinity)
    }
}
