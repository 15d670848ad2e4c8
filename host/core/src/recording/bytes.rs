//! Bytes in JSON: text as it is, and everything else as `base64:...`.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const PREFIX: &str = "base64:";

/// Bytes of a message or of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data<'a>(pub Cow<'a, [u8]>);

impl<'a> Data<'a> {
    pub fn of(bytes: &'a [u8]) -> Self {
        Self(Cow::Borrowed(bytes))
    }
}

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match str::from_utf8(&self.0) {
            Ok(text) if !text.starts_with(PREFIX) => serializer.serialize_str(text),
            _ => serializer.collect_str(&format_args!("{PREFIX}{}", Base64Display::new(&self.0, &STANDARD))),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Data<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl<'de> Visitor<'de> for Text {
            type Value = Data<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Data<'de>, E> {
                match text.strip_prefix(PREFIX) {
                    Some(_) => self.visit_str(text),
                    None => Ok(Data(Cow::Borrowed(text.as_bytes()))),
                }
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Data<'de>, E> {
                let bytes = match text.strip_prefix(PREFIX) {
                    Some(base64) => STANDARD.decode(base64).map_err(E::custom)?,
                    None => text.as_bytes().to_vec(),
                };
                Ok(Data(Cow::Owned(bytes)))
            }
        }

        deserializer.deserialize_str(Text)
    }
}
