use alloc::string::String;
use alloc::vec::Vec;
use core::marker::PhantomData;

use super::Value;
use crate::{Failure, text};

/// One value for each of many devices, for functions with `state = "function"`: the keys are `name/device`.
///
/// The number of devices is bounded, since whoever may publish can invent them: a new one beyond [`at_most`](Self::at_most) rejects
/// its message. A value that cannot be read as `V`, as one of an earlier version of the function, counts as absent.
///
/// ```
/// use sedge_function::prelude::*;
/// use sedge_function::state::DeviceMap;
///
/// # fn handle(message: Message) -> Outcome {
/// let levels = DeviceMap::<f64>::new("level").at_most(200);
/// if let Some(level) = message.number("level")? {
///     levels.set(&message.topic, level)?;
/// }
/// let lowest = levels.entries()?.into_iter().map(|(_, level)| level).fold(f64::INFINITY, f64::min);
/// # Ok(vec![])
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DeviceMap<V> {
    prefix: String,
    at_most: usize,
    values: PhantomData<fn() -> V>,
}

/// Of 4,096 keys that a scope may have.
const AT_MOST: usize = 1000;

impl<V: Value> DeviceMap<V> {
    /// A map of at most 1,000 devices. Names of maps have no `/`, so that the keys of two maps differ.
    pub fn new(name: &str) -> Self {
        Self { prefix: text!(name, "/"), at_most: AT_MOST, values: PhantomData }
    }

    pub fn at_most(self, devices: usize) -> Self {
        Self { at_most: devices, ..self }
    }

    /// The key of a device, for other helpers that keep something for it.
    pub fn key(&self, device: &str) -> String {
        text!(self.prefix, device)
    }

    pub fn get(&self, device: &str) -> Result<Option<V>, Failure> {
        Ok(super::read(&self.key(device))?.and_then(V::decode))
    }

    pub fn set(&self, device: &str, value: V) -> Result<(), Failure> {
        let key = self.key(device);
        if super::read(&key)?.is_none() && self.devices()?.len() >= self.at_most {
            return Err(Failure::reject(text!(
                "\"",
                self.prefix,
                "\" has its ",
                self.at_most,
                " devices: no room for \"",
                device,
                "\""
            )));
        }
        super::set(&key, value)
    }

    pub fn remove(&self, device: &str) -> Result<(), Failure> {
        super::remove(&self.key(device))
    }

    /// The devices in order.
    pub fn devices(&self) -> Result<Vec<String>, Failure> {
        let mut keys = super::keys()?;
        keys.retain_mut(|key| {
            let is_device = key.starts_with(&self.prefix);
            if is_device {
                key.drain(..self.prefix.len());
            }
            is_device
        });
        Ok(keys)
    }

    /// The devices in order, with their values.
    pub fn entries(&self) -> Result<Vec<(String, V)>, Failure> {
        let mut entries = Vec::new();
        for device in self.devices()? {
            if let Some(value) = self.get(&device)? {
                entries.push((device, value));
            }
        }
        Ok(entries)
    }

    /// Removes the devices that are not to be kept, and those whose value cannot be read.
    pub fn retain(&self, mut keep: impl FnMut(&str, &V) -> bool) -> Result<(), Failure> {
        for device in self.devices()? {
            if !self.get(&device)?.is_some_and(|value| keep(&device, &value)) {
                self.remove(&device)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state;
    use crate::testing::Board;
    use alloc::vec;

    #[test]
    fn devices_have_values_of_their_own_beside_other_keys() {
        Board::new().with_state(|| {
            let levels = DeviceMap::<f64>::new("level");
            state::set("levels", 1u64).unwrap();
            DeviceMap::<bool>::new("seen").set("a", true).unwrap();
            levels.set("tank/b", 2.0).unwrap();
            levels.set("tank/a", 1.0).unwrap();
            assert_eq!(levels.get("tank/a"), Ok(Some(1.0)));
            assert_eq!(levels.get("tank/c"), Ok(None));
            assert_eq!(levels.entries(), Ok(vec![("tank/a".into(), 1.0), ("tank/b".into(), 2.0)]));
            assert_eq!(state::keys().unwrap(), ["level/tank/a", "level/tank/b", "levels", "seen/a"]);
            levels.remove("tank/a").unwrap();
            assert_eq!(levels.devices().unwrap(), ["tank/b"]);
        });
    }

    #[test]
    fn invented_devices_do_not_fill_the_state() {
        Board::new().with_state(|| {
            let levels = DeviceMap::<f64>::new("level").at_most(2);
            levels.set("a", 1.0).unwrap();
            levels.set("b", 1.0).unwrap();
            let why = "\"level/\" has its 2 devices: no room for \"c\"";
            assert_eq!(levels.set("c", 1.0), Err(Failure::reject(why)));
            levels.set("b", 2.0).unwrap();
            levels.retain(|_, level| *level > 1.0).unwrap();
            levels.set("c", 3.0).unwrap();
            assert_eq!(levels.devices().unwrap(), ["b", "c"]);
        });
    }

    #[test]
    fn a_value_of_an_earlier_version_is_absent_and_replaced() {
        Board::new().with_state(|| {
            let levels = DeviceMap::<f64>::new("level");
            state::set("level/a", vec![1u8, 2, 3]).unwrap();
            levels.set("b", 1.0).unwrap();
            assert_eq!(levels.get("a"), Ok(None));
            assert_eq!(levels.entries(), Ok(vec![("b".into(), 1.0)]));
            levels.set("a", 2.0).unwrap();
            assert_eq!(levels.get("a"), Ok(Some(2.0)));
            state::set("level/a", vec![1u8, 2, 3]).unwrap();
            levels.retain(|_, _| true).unwrap();
            assert_eq!(levels.devices().unwrap(), ["b"]);
        });
    }
}
