//! Log lines, through the host's log.

use core::fmt::Arguments;

pub use crate::bindings::wasi::logging::logging::Level;
use crate::host;

/// A line as it is.
pub fn write(level: Level, line: &str) {
    host::log(level, line);
}

/// What the macros call. A line without arguments is sent as it is, and then no formatting code is linked.
#[doc(hidden)]
#[inline(always)]
pub fn write_arguments(level: Level, arguments: Arguments<'_>) {
    match arguments.as_str() {
        Some(line) => host::log(level, line),
        None => host::log(level, &alloc::fmt::format(arguments)),
    }
}

/// A log line at this level, written like the argument of `format!`.
#[macro_export]
macro_rules! debug {
    ($($line:tt)*) => {
        $crate::log::write_arguments($crate::log::Level::Debug, ::core::format_args!($($line)*))
    };
}

/// A log line at this level, written like the argument of `format!`.
#[macro_export]
macro_rules! info {
    ($($line:tt)*) => {
        $crate::log::write_arguments($crate::log::Level::Info, ::core::format_args!($($line)*))
    };
}

/// A log line at this level, written like the argument of `format!`.
#[macro_export]
macro_rules! warn {
    ($($line:tt)*) => {
        $crate::log::write_arguments($crate::log::Level::Warn, ::core::format_args!($($line)*))
    };
}

/// A log line at this level, written like the argument of `format!`.
#[macro_export]
macro_rules! error {
    ($($line:tt)*) => {
        $crate::log::write_arguments($crate::log::Level::Error, ::core::format_args!($($line)*))
    };
}
