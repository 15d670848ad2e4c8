//! An order: the JSON that is signed.
//!
//! Unknown members, and members that an action does not use, are refused: an older board must not carry out half of a newer
//! order.

use std::collections::BTreeMap;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::code::Abi;
use super::keys::TrustedKey;
use super::reason::{Reason, Refusal};
use super::topics::{KEYS, Target};
use crate::isa::Class;
use crate::key::KeyId;
use crate::manifest::Manifest;
use crate::message::Digest;
use crate::settings::TopicText;

/// Allowed sizes of a chunk.
pub const CHUNK_BYTES: std::ops::RangeInclusive<u32> = 1 << 10..=256 << 10;
pub const DEFAULT_CHUNK_BYTES: u32 = 64 << 10;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Order {
    /// A function's name, or [`KEYS`].
    pub function: Box<str>,
    /// Grows with each order for the function.
    pub serial: u64,
    pub target: Target,
    pub issued_at_ms: u64,
    pub expires_at_ms: u64,
    pub change: OrderChange,
}

#[derive(Clone, Debug, PartialEq)]
pub enum OrderChange {
    Install(Box<Install>),
    Remove,
    /// Returns to the previous version; ends a running trial.
    Rollback,
    /// Ends a trial in favour of the candidate.
    Promote,
    Keys(KeyUpdate),
    /// Replaces what its target lays over the settings of the function.
    Settings(SettingsUpdate),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Install {
    /// Parsed with [`Manifest::from_json`] after all other checks of the order.
    pub manifest: Document,
    pub module: Option<Module>,
    /// The module, compiled for several engines. Module, code or both are present.
    pub code: Vec<NativeCode>,
}

/// A file of [`super::code`] and its engine, so that a board fetches only code that it can run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NativeCode {
    pub target: Box<str>,
    pub wasmtime: u32,
    pub settings: u32,
    pub class: Class,
    /// The file and its chunks.
    pub module: Module,
}

/// A component, or a file of native code, and its chunks. The digest of each chunk is signed, so that each can be checked
/// by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Module {
    pub digest: Digest,
    pub size: u64,
    pub chunk_size: u32,
    pub chunks: Vec<Digest>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyUpdate {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust: Vec<TrustedKey>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoke: Vec<KeyId>,
    /// Apply it although no key may be left that can change the keys. Omitted when false, since older boards do not know it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// All values of one layer. Without any, the layer is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsUpdate {
    /// Serial of the order that it builds on, or 0. Refused where a later one was accepted.
    pub base: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub all: BTreeMap<String, String>,
    /// Values for topics that a filter matches.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub topics: BTreeMap<TopicText, BTreeMap<String, String>>,
}

/// A JSON object without duplicate keys: two parsers must not read two manifests from one signed text.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Document(Value);

pub fn digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

impl Order {
    pub fn parse(payload: &[u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(payload)
            .map_err(|error| Refusal::new(Reason::BadEnvelope, format!("the signed payload is not an order: {error}")))
    }

    /// The bytes to sign.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an order has only string keys")
    }
}

impl OrderChange {
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Install(_) => "install",
            Self::Remove => "remove",
            Self::Rollback => "rollback",
            Self::Promote => "promote",
            Self::Keys(_) => "keys",
            Self::Settings(_) => "settings",
        }
    }
}

impl Install {
    /// All modules that boards may fetch.
    pub fn modules(&self) -> impl Iterator<Item = &Module> {
        self.module.iter().chain(self.code.iter().map(|code| &code.module))
    }

    /// Whether the digest is that of one of the modules.
    pub fn has(&self, digest: Digest) -> bool {
        self.modules().any(|module| module.digest == digest)
    }
}

impl NativeCode {
    pub fn new(abi: Abi, module: Module) -> Self {
        let Abi { target, wasmtime, settings, class } = abi;
        Self { target, wasmtime, settings, class, module }
    }

    pub fn abi(&self) -> Abi {
        let Self { target, wasmtime, settings, class, .. } = self;
        Abi { target: target.clone(), wasmtime: *wasmtime, settings: *settings, class: *class }
    }
}

impl Module {
    pub fn of(wasm: &[u8], chunk_size: u32) -> Self {
        let chunks = wasm.chunks(chunk_size.max(1) as usize).map(digest).collect();
        Self { digest: digest(wasm), size: wasm.len() as u64, chunk_size, chunks }
    }

    /// Byte range of a chunk; empty for an index that does not exist.
    pub fn range(&self, index: u32) -> std::ops::Range<u64> {
        let start = u64::from(index).saturating_mul(self.chunk_size.into()).min(self.size);
        start..start.saturating_add(self.chunk_size.into()).min(self.size)
    }

    /// Checks sizes and number of chunks against each other and against the limits of a board.
    pub fn check(&self, max_bytes: u64) -> Result<(), Refusal> {
        let Self { size, chunk_size, .. } = *self;
        if size > max_bytes {
            let detail =
                format!("the module has {size} bytes, and this board allows {max_bytes} (deploy.max_module_bytes)");
            return Err(Refusal::new(Reason::OverLimit, detail));
        }
        if size == 0 {
            return Err(Refusal::new(Reason::SizeMismatch, "the module has 0 bytes"));
        }
        if !CHUNK_BYTES.contains(&chunk_size) {
            let (least, most) = (CHUNK_BYTES.start(), CHUNK_BYTES.end());
            let detail = format!("a chunk has {chunk_size} bytes; use from {least} to {most} (--chunk-size)");
            return Err(Refusal::new(Reason::OverLimit, detail));
        }
        let (found, needed) = (self.chunks.len() as u64, size.div_ceil(chunk_size.into()));
        if found != needed {
            let detail =
                format!("{size} bytes in chunks of {chunk_size} are {needed} chunks, and the order names {found}");
            return Err(Refusal::new(Reason::SizeMismatch, detail));
        }
        Ok(())
    }
}

impl Document {
    pub fn of(manifest: &Manifest) -> Self {
        Self(serde_json::to_value(manifest).expect("a manifest has only string keys"))
    }

    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(&self.0).expect("JSON that was read can be written")
    }

    pub fn as_value(&self) -> &Value {
        &self.0
    }
}

/// The JSON form of an order.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wire {
    action: Action,
    function: Box<str>,
    serial: u64,
    target: Target,
    issued_at_ms: u64,
    expires_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    manifest: Option<Document>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    module: Option<Module>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    code: Vec<NativeCode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keys: Option<KeyUpdate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settings: Option<SettingsUpdate>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Install,
    Remove,
    Rollback,
    Promote,
    Keys,
    Settings,
}

impl TryFrom<Wire> for Order {
    type Error = &'static str;

    fn try_from(wire: Wire) -> Result<Self, &'static str> {
        let Wire {
            action,
            function,
            serial,
            target,
            issued_at_ms,
            expires_at_ms,
            manifest,
            module,
            code,
            keys,
            settings,
        } = wire;
        if (action == Action::Settings) != settings.is_some() {
            return Err("a change of settings, and nothing else, holds settings");
        }
        let runs = module.is_some() || !code.is_empty();
        let change = match (action, manifest, runs, keys) {
            (Action::Install, Some(manifest), true, None) => {
                OrderChange::Install(Box::new(Install { manifest, module, code }))
            }
            (Action::Install, ..) => {
                return Err("an install holds manifest and module, code or both, and nothing else");
            }
            (Action::Keys, None, false, Some(keys)) => OrderChange::Keys(keys),
            (Action::Keys, ..) => return Err("a change of keys holds keys, and nothing else"),
            (Action::Settings, None, false, None) => OrderChange::Settings(settings.unwrap_or_default()),
            (Action::Remove, None, false, None) => OrderChange::Remove,
            (Action::Rollback, None, false, None) => OrderChange::Rollback,
            (Action::Promote, None, false, None) => OrderChange::Promote,
            _ => return Err("only an install holds manifest, module and code, and only a change of keys holds keys"),
        };
        if matches!(change, OrderChange::Keys(_)) != (*function == *KEYS) {
            return Err("a change of keys, and nothing else, is for the function _keys");
        }
        Ok(Self { function, serial, target, issued_at_ms, expires_at_ms, change })
    }
}

impl From<Order> for Wire {
    fn from(order: Order) -> Self {
        let Order { function, serial, target, issued_at_ms, expires_at_ms, change } = order;
        let mut wire = Self {
            action: Action::Remove,
            function,
            serial,
            target,
            issued_at_ms,
            expires_at_ms,
            manifest: None,
            module: None,
            code: Vec::new(),
            keys: None,
            settings: None,
        };
        match change {
            OrderChange::Install(install) => {
                let Install { manifest, module, code } = *install;
                (wire.action, wire.manifest, wire.module, wire.code) = (Action::Install, Some(manifest), module, code);
            }
            OrderChange::Remove => {}
            OrderChange::Rollback => wire.action = Action::Rollback,
            OrderChange::Promote => wire.action = Action::Promote,
            OrderChange::Keys(keys) => (wire.action, wire.keys) = (Action::Keys, Some(keys)),
            OrderChange::Settings(settings) => (wire.action, wire.settings) = (Action::Settings, Some(settings)),
        }
        wire
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Unique::deserialize(deserializer)?.0 {
            object @ Value::Object(_) => Ok(Self(object)),
            _ => Err(de::Error::custom("expected an object")),
        }
    }
}

struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Unique;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Unique, E> {
        Ok(Unique(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Unique, E> {
        Ok(Unique(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Unique, E> {
        Ok(Unique(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Unique, E> {
        Ok(Unique(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Unique, E> {
        Ok(Unique(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Unique, E> {
        Ok(Unique(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Unique, A::Error> {
        let mut items = Vec::new();
        while let Some(Unique(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Unique(Value::Array(items)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
        let mut entries = Map::new();
        while let Some((key, Unique(item))) = map.next_entry::<String, Unique>()? {
            if entries.contains_key(&key) {
                return Err(de::Error::custom(format_args!("key {key:?} occurs twice")));
            }
            entries.insert(key, item);
        }
        Ok(Unique(Value::Object(entries)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::isa::Isa;

    fn manifest() -> Manifest {
        let text = "name = \"warm\"\nversion = \"1\"\nserial = 7\nsubscribe = [\"s/#\"]\n[config]\nfactor = 1.5";
        Manifest::from_toml(text, Path::new("function.toml"), None).unwrap()
    }

    fn order(change: OrderChange) -> Order {
        let function = if matches!(change, OrderChange::Keys(_)) { KEYS } else { "warm" };
        Order {
            function: function.into(),
            serial: 7,
            target: Target::Node("n".into()),
            issued_at_ms: 1,
            expires_at_ms: 2,
            change,
        }
    }

    fn install() -> OrderChange {
        let module = Some(Module::of(&[9; 2500], 1024));
        OrderChange::Install(Box::new(Install { manifest: Document::of(&manifest()), module, code: Vec::new() }))
    }

    fn settings() -> OrderChange {
        let values = BTreeMap::from([("max".to_owned(), "5".to_owned())]);
        let topics = BTreeMap::from([(TopicText::new(&"s/+".parse().unwrap()), values.clone())]);
        OrderChange::Settings(SettingsUpdate { base: 6, all: values, topics })
    }

    #[test]
    fn settings_are_in_an_order_of_their_own() {
        let json = String::from_utf8(order(settings()).to_json()).unwrap();
        assert!(json.ends_with(r#""settings":{"base":6,"all":{"max":"5"},"topics":{"s/+":{"max":"5"}}}}"#), "{json}");
        for (from, to) in [("\"settings\",", "\"remove\","), ("s/+", "s/#/a"), ("\"base\":6", "\"base\":6,\"all\":{}")]
        {
            assert!(Order::parse(json.replacen(from, to, 1).as_bytes()).is_err(), "{from}");
        }
        let removal = String::from_utf8(order(OrderChange::Remove).to_json()).unwrap();
        assert!(!removal.contains("settings"), "an older board would refuse it: {removal}");
    }

    fn with_code() -> OrderChange {
        let code = [Isa::Aarch64, Isa::Pulley32]
            .map(|target| NativeCode::new(Abi::of(target, Class::Small), Module::of(target.as_str().as_bytes(), 1024)));
        OrderChange::Install(Box::new(Install { manifest: Document::of(&manifest()), module: None, code: code.into() }))
    }

    #[test]
    fn orders_come_back_as_they_were_written() {
        for change in [
            install(),
            with_code(),
            OrderChange::Remove,
            OrderChange::Rollback,
            OrderChange::Promote,
            OrderChange::Keys(KeyUpdate::default()),
            settings(),
        ] {
            let order = order(change);
            assert_eq!(Order::parse(&order.to_json()).unwrap(), order);
        }
        let OrderChange::Install(install) = install() else { unreachable!() };
        assert_eq!(Manifest::from_json(&install.manifest.to_json(), None).unwrap(), manifest());
        let removal = String::from_utf8(order(OrderChange::Remove).to_json()).unwrap();
        assert_eq!(
            removal,
            r#"{"action":"remove","function":"warm","serial":7,"target":{"node":"n"},"issued_at_ms":1,"expires_at_ms":2}"#
        );
    }

    #[test]
    fn an_order_without_code_has_no_member_code() {
        let plain = String::from_utf8(order(install()).to_json()).unwrap();
        assert!(!plain.contains("code"), "an older board would refuse it: {plain}");
        let json: Value = serde_json::from_slice(&order(with_code()).to_json()).unwrap();
        assert_eq!((&json["code"][1]["target"], &json["code"][1]["class"]), (&"pulley32".into(), &"small".into()));
        assert_eq!(json.get("module"), None);
        // Code for an unknown target does not spoil the order for known ones.
        let tomorrow = String::from_utf8(order(with_code()).to_json()).unwrap().replace("pulley32", "pulley128");
        assert!(Order::parse(tomorrow.as_bytes()).is_ok());
    }

    #[test]
    fn unknown_and_unused_members_are_refused() {
        let good = String::from_utf8(order(OrderChange::Remove).to_json()).unwrap();
        let check = |payload: String, expected: &str| {
            let refusal = Order::parse(payload.as_bytes()).unwrap_err();
            assert_eq!(refusal.reason, Reason::BadEnvelope);
            assert!(refusal.detail.contains(expected), "{payload}: {refusal}");
        };
        check(good.replace("serial", "serials"), "unknown field");
        check(good.replace("{\"node\":\"n\"}", "{\"node\":\"n\",\"group\":\"g\"}"), "expected");
        check(good.replace("\"serial\":7", "\"serial\":7,\"serial\":8"), "duplicate field");
        check(good.replace("\"serial\":7", "\"serial\":-7"), "invalid value");
        check(good.replace("remove", "explode"), "unknown variant");
        check(good.replace("remove", "install"), "manifest and module");
        check(good.replace("remove", "keys"), "holds keys");
        check(good.replace("\"warm\"", "\"_keys\""), "_keys");
        check(good.replace("\"serial\":7", "\"serial\":7,\"keys\":{}"), "only an install");
        check(good.replace("\"serial\":7", "\"serial\":7,\"manifest\":{}"), "only an install");
        let code = String::from_utf8(order(with_code()).to_json()).unwrap();
        check(code.replace("install", "remove"), "only an install");
        check(code.replace("\"settings\"", "\"set\""), "unknown field");
        let (before, _) = code.split_once(",\"code\"").unwrap();
        check(format!("{before}}}"), "module, code or both");
        check(String::new(), "EOF");
        check(format!("{good}x"), "trailing");
        let deep = format!("\"serial\":7,\"manifest\":{}", "[".repeat(100_000));
        let refusal = Order::parse(good.replace("\"serial\":7", &deep).as_bytes()).unwrap_err();
        assert!(refusal.detail.contains("recursion"), "{refusal}");
    }

    #[test]
    fn a_manifest_with_a_duplicate_key_is_refused() {
        let good = String::from_utf8(order(install()).to_json()).unwrap();
        let twice = good.replace("\"name\":\"warm\"", "\"name\":\"warm\",\"name\":\"cold\"");
        assert_ne!(good, twice);
        let refusal = Order::parse(twice.as_bytes()).unwrap_err();
        assert!(refusal.detail.contains("\"name\" occurs twice"), "{refusal}");
        let list = r#"{"action":"install","function":"warm","serial":7,"target":{"node":"n"},"issued_at_ms":1,"expires_at_ms":2,"manifest":[]}"#;
        assert!(Order::parse(list.as_bytes()).unwrap_err().detail.contains("expected an object"));
    }

    #[test]
    fn a_module_is_cut_into_chunks_that_cover_it() {
        for size in [1, 1023, 1024, 1025, 2500, 4096] {
            let wasm: Vec<u8> = (0..size).map(|n| n as u8).collect();
            let module = Module::of(&wasm, 1024);
            module.check(1 << 20).unwrap();
            let mut end = 0;
            for (index, digest) in module.chunks.iter().enumerate() {
                let range = module.range(index as u32);
                assert_eq!(range.start, end);
                assert_eq!(*digest, super::digest(&wasm[range.start as usize..range.end as usize]));
                end = range.end;
            }
            assert_eq!(end, size as u64);
            assert!(module.range(module.chunks.len() as u32).is_empty());
            assert!(module.range(u32::MAX).is_empty());
        }
    }

    #[test]
    fn inconsistent_sizes_are_refused() {
        let check = |change: fn(&mut Module), expected: Reason| {
            let mut module = Module::of(&[1; 2500], 1024);
            change(&mut module);
            assert_eq!(module.check(4096).unwrap_err().reason, expected, "{module:?}");
        };
        check(|module| module.size = 4097, Reason::OverLimit);
        check(|module| module.size = u64::MAX, Reason::OverLimit);
        check(|module| module.size = 0, Reason::SizeMismatch);
        check(|module| module.size = 2048, Reason::SizeMismatch);
        check(|module| module.chunk_size = 0, Reason::OverLimit);
        check(|module| module.chunk_size = 1023, Reason::OverLimit);
        check(|module| module.chunk_size = (256 << 10) + 1, Reason::OverLimit);
        check(|module| module.chunks.clear(), Reason::SizeMismatch);
        check(|module| module.chunks.push(module.digest), Reason::SizeMismatch);
    }
}
