//! The memory of a script when its top level has run, from which each message starts.

use std::sync::Arc;

const PAGE: usize = 4096;

/// The parts of a memory that are not zero. Pages that are those of another image are not held twice.
pub(crate) struct Image {
    /// Size of the whole memory.
    pub(crate) size: usize,
    parts: Vec<Part>,
    content: Vec<u8>,
    base: Option<Arc<Image>>,
}

struct Part {
    /// Address in the memory.
    at: usize,
    len: usize,
    /// Where its bytes are in `content`, or in that of the base.
    from: usize,
    is_of_base: bool,
}

impl Image {
    pub(crate) fn of(memory: &[u8], base: Option<&Arc<Self>>) -> Self {
        let mut image = Self { size: memory.len(), parts: Vec::new(), content: Vec::new(), base: base.cloned() };
        for (page, bytes) in memory.chunks(PAGE).enumerate() {
            if bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            let at = page * PAGE;
            let same = base.and_then(|base| base.equal_page(at, bytes));
            let from = same.unwrap_or(image.content.len());
            if same.is_none() {
                image.content.extend_from_slice(bytes);
            }
            let next = Part { at, len: bytes.len(), from, is_of_base: same.is_some() };
            match image.parts.last_mut() {
                Some(last) if last.is_followed_by(&next) => last.len += next.len,
                _ => image.parts.push(next),
            }
        }
        image.content.shrink_to_fit();
        image
    }

    /// Where the content of a page is, if it is equal. The image has no base itself.
    fn equal_page(&self, at: usize, bytes: &[u8]) -> Option<usize> {
        let part = self.parts.iter().find(|part| (part.at..part.at + part.len).contains(&at))?;
        let from = part.from + (at - part.at);
        (self.content.get(from..from + bytes.len()) == Some(bytes)).then_some(from)
    }

    /// Makes a memory of zeros, which is at least as large, the image.
    pub(crate) fn restore(&self, memory: &mut [u8]) {
        let base = self.base.as_deref().unwrap_or(self);
        for Part { at, len, from, is_of_base } in &self.parts {
            let content = if *is_of_base { &base.content } else { &self.content };
            memory[*at..*at + *len].copy_from_slice(&content[*from..*from + *len]);
        }
    }

    /// Whether a memory is exactly the image, with zeros everywhere else.
    #[cfg(test)]
    pub(crate) fn equals(&self, memory: &[u8]) -> bool {
        let mut whole = vec![0; memory.len()];
        self.restore(&mut whole);
        memory.len() >= self.size && whole == memory
    }

    /// Bytes of all parts.
    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.len).sum()
    }
}

impl Part {
    fn is_followed_by(&self, next: &Self) -> bool {
        self.is_of_base == next.is_of_base && self.at + self.len == next.at && self.from + self.len == next.from
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_is_put_back_as_it_was() {
        let mut memory = vec![0; 20 * PAGE];
        for at in [0, PAGE - 1, 3 * PAGE + 7, 4 * PAGE, 19 * PAGE + 4095] {
            memory[at] = 1;
        }
        let image = Image::of(&memory, None);
        assert_eq!((image.size, image.bytes()), (memory.len(), 4 * PAGE));
        let mut fresh = vec![0; 20 * PAGE];
        image.restore(&mut fresh);
        assert!(fresh == memory && image.equals(&fresh));
        fresh[8 * PAGE] = 1;
        assert!(!image.equals(&fresh));
    }

    #[test]
    fn pages_of_a_base_are_held_once() {
        let mut memory: Vec<u8> = (0..20 * PAGE).map(|at| (at / PAGE) as u8).collect();
        let base = Arc::new(Image::of(&memory, None));
        for at in [5 * PAGE + 1, 6 * PAGE, 19 * PAGE] {
            memory[at] = 99;
        }
        // Equal to another page than the one at its address.
        memory.copy_within(7 * PAGE..8 * PAGE, 8 * PAGE);
        memory.extend([7; 2 * PAGE]);
        memory[3 * PAGE..4 * PAGE].fill(0);
        let image = Image::of(&memory, Some(&base));
        assert_eq!((image.content.len(), image.bytes()), (6 * PAGE, 20 * PAGE));
        let mut fresh = vec![0; memory.len()];
        image.restore(&mut fresh);
        assert!(fresh == memory);
    }
}
