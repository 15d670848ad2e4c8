//! The settings of one loaded version, by the topic of the message.

use std::collections::HashMap;
use std::sync::Arc;

use sedge_core::settings::Settings;

pub(crate) type List = Arc<[(String, String)]>;

/// Topics whose settings are remembered. Beyond it they are put together anew.
const MAX_TOPICS: usize = 1024;

/// What a function is given. Where no topic has values of its own, all messages share one list.
pub(crate) struct TopicSettings {
    settings: Settings,
    all: List,
    by_topic: HashMap<Arc<str>, List>,
}

impl TopicSettings {
    pub(crate) fn new(settings: Settings) -> Self {
        let all = settings.all.as_slice().into();
        Self { settings, all, by_topic: HashMap::new() }
    }

    pub(crate) fn all(&self) -> &List {
        &self.all
    }

    /// The settings for a message on this topic.
    pub(crate) fn of(&mut self, topic: &Arc<str>) -> List {
        if self.settings.topics.is_empty() {
            return Arc::clone(&self.all);
        }
        if let Some(known) = self.by_topic.get(topic) {
            return Arc::clone(known);
        }
        let list = self.settings.of_topic(topic).map_or_else(|| Arc::clone(&self.all), Into::into);
        if self.by_topic.len() >= MAX_TOPICS {
            self.by_topic.clear();
        }
        self.by_topic.insert(Arc::clone(topic), Arc::clone(&list));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_with_values_of_its_own_has_them_and_others_share_one_list() {
        let own = |text: &str| vec![("max".to_owned(), text.to_owned())];
        let settings = Settings { all: own("1"), topics: vec![("a/+".parse().unwrap(), own("2"))] };
        let mut settings = TopicSettings::new(settings);
        assert_eq!(*settings.of(&"a/1".into()), own("2"));
        for n in 0..2 * MAX_TOPICS {
            let list = settings.of(&format!("b/{n}").into());
            assert!(Arc::ptr_eq(&list, settings.all()));
            assert!(settings.by_topic.len() <= MAX_TOPICS);
        }
        assert_eq!(*settings.of(&"a/2".into()), own("2"));
    }
}
