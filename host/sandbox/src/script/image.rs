//! The memory of a script when its top level has run, from which each message starts.

const PAGE: usize = 4096;

/// The parts of a memory that are not zero.
pub(crate) struct Image {
    /// Size of the whole memory.
    pub(crate) size: usize,
    /// Address and length of each part. `content` holds them one after the other.
    parts: Vec<(usize, usize)>,
    content: Vec<u8>,
}

impl Image {
    pub(crate) fn of(memory: &[u8]) -> Self {
        let (mut parts, mut content) = (Vec::<(usize, usize)>::new(), Vec::new());
        for (page, bytes) in memory.chunks(PAGE).enumerate() {
            if bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            let at = page * PAGE;
            match parts.last_mut() {
                Some((start, len)) if *start + *len == at => *len += bytes.len(),
                _ => parts.push((at, bytes.len())),
            }
            content.extend_from_slice(bytes);
        }
        content.shrink_to_fit();
        Self { size: memory.len(), parts, content }
    }

    /// Makes a memory of zeros, which is at least as large, the image.
    pub(crate) fn restore(&self, memory: &mut [u8]) {
        let mut content = &self.content[..];
        for (at, len) in &self.parts {
            let (part, rest) = content.split_at(*len);
            memory[*at..*at + *len].copy_from_slice(part);
            content = rest;
        }
    }

    /// Whether a memory is exactly the image, with zeros everywhere else.
    #[cfg(test)]
    pub(crate) fn equals(&self, memory: &[u8]) -> bool {
        let mut whole = vec![0; memory.len()];
        self.restore(&mut whole);
        memory.len() >= self.size && whole == memory
    }

    pub(crate) fn bytes(&self) -> usize {
        self.content.len()
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
        let image = Image::of(&memory);
        assert_eq!((image.size, image.bytes()), (memory.len(), 4 * PAGE));
        let mut fresh = vec![0; 20 * PAGE];
        image.restore(&mut fresh);
        assert!(fresh == memory && image.equals(&fresh));
        fresh[8 * PAGE] = 1;
        assert!(!image.equals(&fresh));
    }
}
