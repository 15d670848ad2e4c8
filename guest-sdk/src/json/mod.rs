//! JSON as sensors send it: read in place, without building a tree, and written member by member.

mod cursor;
mod find;
mod text;
mod value;
mod write;

pub use find::Reading;
pub use value::{Items, Members, Value};
pub use write::{JsonArray, JsonObject};

pub(crate) use find::find_numbers;
pub(crate) use text::{eq_ignore_case, unescape, utf8, utf8_start};
pub(crate) use value::lookup;
pub(crate) use write::push_string;
