//! Reports of functions that the board does not have: somebody's orders for them were refused. Few, since anybody who may
//! publish can make names up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::function::TrackedFunction;
use crate::time::Now;

const MOST: usize = 32;
/// A new name may take the place of one that is as old.
const KEPT: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct UnknownFunctions(BTreeMap<Arc<str>, (TrackedFunction, Instant)>);

impl UnknownFunctions {
    /// `None`: there are too many. The second is one whose report is to be taken back.
    pub fn entry(&mut self, name: &str, now: Now) -> (Option<&mut TrackedFunction>, Option<Arc<str>>) {
        let mut gone = None;
        if !self.0.contains_key(name) && self.0.len() >= MOST {
            let oldest = self.0.iter().min_by_key(|(_, (_, since))| *since).map(|(name, (_, since))| (name, *since));
            match oldest {
                Some((oldest, since)) if now.monotonic.saturating_duration_since(since) >= KEPT => {
                    gone = Some(Arc::clone(oldest));
                }
                _ => return (None, None),
            }
        }
        if let Some(gone) = &gone {
            self.0.remove(gone);
        }
        let name: Arc<str> = name.into();
        let (function, _) =
            self.0.entry(Arc::clone(&name)).or_insert_with(|| (TrackedFunction::new(name), now.monotonic));
        (Some(function), gone)
    }

    /// It is no stranger any more.
    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut TrackedFunction> {
        self.0.values_mut().map(|(function, _)| function)
    }
}
