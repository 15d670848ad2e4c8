//! Units whose changes to a scope wait to be sent, by scope, in the order of the runs: the store must get them in this order.

use std::collections::VecDeque;

use crate::board::ids::UnitId;
use crate::board::map::{Map, Seeded};
use crate::message::Scope;

#[derive(Debug)]
pub(super) struct Unsent {
    places: Map<Scope, Place>,
    queues: Vec<Queue>,
    free: Vec<Place>,
}

/// A scope's queue, while there is one. Units remember it: scopes are long to hash.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place(u32);

#[derive(Debug)]
struct Queue {
    scope: Scope,
    units: VecDeque<UnitId>,
}

impl Unsent {
    pub(super) fn new(seed: Seeded) -> Self {
        Self { places: seed.map(), queues: Vec::new(), free: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(super) fn contains(&self, scope: &Scope) -> bool {
        self.places.contains_key(scope)
    }

    pub(super) fn scopes(&self) -> impl Iterator<Item = &Scope> {
        self.places.keys()
    }

    /// Units that wait with changes to the scope, in order.
    pub(super) fn units(&self, scope: &Scope) -> impl Iterator<Item = UnitId> {
        let queue = self.places.get(scope).map(|place| &self.queues[place.index()].units);
        queue.into_iter().flatten().copied()
    }

    /// Adds a unit behind those of the scope. `None`: it is the last of them already.
    pub(super) fn push(&mut self, scope: Scope, unit: UnitId) -> Option<Place> {
        let Self { places, queues, free } = self;
        let place = *places.entry(scope.clone()).or_insert_with(|| match free.pop() {
            Some(place) => {
                queues[place.index()].scope = scope;
                place
            }
            None => {
                queues.push(Queue { scope, units: VecDeque::new() });
                Place(queues.len() as u32 - 1)
            }
        });
        let units = &mut queues[place.index()].units;
        if units.back() == Some(&unit) {
            return None;
        }
        units.push_back(unit);
        Some(place)
    }

    pub(super) fn is_first(&self, place: Place, unit: UnitId) -> bool {
        self.queues[place.index()].units.front() == Some(&unit)
    }

    /// The first unit is sent. Returns the one behind it.
    pub(super) fn pop(&mut self, place: Place) -> Option<UnitId> {
        let Queue { scope, units } = &mut self.queues[place.index()];
        units.pop_front();
        if units.is_empty() {
            self.places.remove(scope);
            self.free.push(place);
        }
        units.front().copied()
    }

    pub(super) fn clear(&mut self) {
        self.places.clear();
        self.queues.clear();
        self.free.clear();
    }
}

impl Place {
    const fn index(self) -> usize {
        self.0 as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(topic: &str) -> Scope {
        Scope { function: "f".into(), topic: Some(topic.into()) }
    }

    #[test]
    fn units_of_a_scope_keep_their_order_and_scopes_come_and_go() {
        let mut unsent = Unsent::new(Seeded::new(1));
        let first = unsent.push(scope("a"), UnitId(1)).unwrap();
        assert!(unsent.push(scope("a"), UnitId(1)).is_none(), "it waits there already");
        let second = unsent.push(scope("a"), UnitId(2)).unwrap();
        let other = unsent.push(scope("b"), UnitId(2)).unwrap();
        assert_eq!(unsent.units(&scope("a")).collect::<Vec<_>>(), [UnitId(1), UnitId(2)]);
        assert!(unsent.is_first(first, UnitId(1)) && !unsent.is_first(second, UnitId(2)));
        assert!(unsent.is_first(other, UnitId(2)));
        assert_eq!((unsent.pop(first), unsent.pop(second)), (Some(UnitId(2)), None));
        assert!(!unsent.contains(&scope("a")) && unsent.contains(&scope("b")));
        // The place of `a` is free for another.
        let third = unsent.push(scope("c"), UnitId(3)).unwrap();
        assert_eq!(unsent.scopes().count(), 2);
        assert_eq!((unsent.pop(third), unsent.pop(other)), (None, None));
        assert!(unsent.is_empty());
    }
}
