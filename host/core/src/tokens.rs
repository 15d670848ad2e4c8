//! File of the tokens for the page: `sedge token` writes it, the daemon reads it. It has digests, not the tokens.

use crate::message::Digest;

/// Name of the file in the data folder.
pub const FILE: &str = "tokens";

/// Line of a token.
pub fn line(name: &str, digest: Digest) -> String {
    format!("{name} {digest}\n")
}

/// Name and digest of each token. Lines that make no sense are passed over.
pub fn tokens(file: &str) -> impl Iterator<Item = (&str, Digest)> {
    file.lines().filter_map(|line| line.split_once(' ')).filter_map(|(name, digest)| Some((name, digest.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::digest;

    #[test]
    fn lines_read_back_and_others_are_passed_over() {
        let file = format!("{}\nnoise\nben 12\n{}", line("anna", digest(b"a")), line("ben", digest(b"b")));
        assert_eq!(tokens(&file).collect::<Vec<_>>(), [("anna", digest(b"a")), ("ben", digest(b"b"))]);
    }
}
