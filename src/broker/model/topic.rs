//! Topic exchanges: patterns of words, where `*` stands for one word and `#` for any number.

use std::collections::{BTreeMap, HashMap};

use super::exchange::Destination;

/// The root of the trie.
const ROOT: usize = 0;

/// Patterns and who is bound with them. A routing key is matched in time proportional to its words and to
/// the patterns that it may still match, however many `#` there are.
#[derive(Debug)]
pub(super) struct TopicTrie {
    nodes: Vec<Node>,
    free: Vec<usize>,
}

#[derive(Debug, Default)]
struct Node {
    /// By word; `*` and `#` are words like any other here.
    children: HashMap<Box<[u8]>, usize>,
    /// Whether the word that leads here is `#`.
    is_hash: bool,
    /// How often each destination is bound here (with different arguments).
    destinations: BTreeMap<Destination, usize>,
}

impl Default for TopicTrie {
    fn default() -> TopicTrie {
        TopicTrie { nodes: vec![Node::default()], free: Vec::new() }
    }
}

/// The words between the dots. An empty key has none.
fn words(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    key.split(|&byte| byte == b'.').filter(move |_| !key.is_empty())
}

impl TopicTrie {
    pub(super) fn insert(&mut self, pattern: &[u8], destination: Destination) {
        let mut at = ROOT;
        for word in words(pattern) {
            at = match self.child(at, word) {
                Some(child) => child,
                None => self.grow(at, word),
            };
        }
        if let Some(node) = self.nodes.get_mut(at) {
            *node.destinations.entry(destination).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, pattern: &[u8], destination: &Destination) {
        let mut path = vec![(ROOT, &[][..])];
        for word in words(pattern) {
            let Some(child) = path.last().and_then(|&(at, _)| self.child(at, word)) else { return };
            path.push((child, word));
        }
        if let Some(node) = path.last().and_then(|&(at, _)| self.nodes.get_mut(at)) {
            match node.destinations.get_mut(destination) {
                Some(times) if *times > 1 => *times -= 1,
                _ => drop(node.destinations.remove(destination)),
            }
        }
        self.prune(&path);
    }

    /// Every destination that has a matching pattern, perhaps more than once.
    pub(super) fn matches(&self, key: &[u8], found: &mut Vec<Destination>) {
        let mut reached = vec![ROOT];
        self.skip_hashes(&mut reached);
        for word in words(key) {
            let mut next = Vec::new();
            for &at in &reached {
                let Some(node) = self.nodes.get(at) else { continue };
                let onward = [self.child(at, word), self.child(at, b"*"), node.is_hash.then_some(at)];
                next.extend(onward.into_iter().flatten());
            }
            next.sort_unstable();
            next.dedup();
            self.skip_hashes(&mut next);
            reached = next;
        }
        let nodes = reached.iter().filter_map(|&at| self.nodes.get(at));
        found.extend(nodes.flat_map(|node| node.destinations.keys().cloned()));
    }

    /// Adds the nodes that can be reached without a word.
    fn skip_hashes(&self, reached: &mut Vec<usize>) {
        let mut seen = 0;
        while let Some(&at) = reached.get(seen) {
            seen += 1;
            if let Some(hash) = self.child(at, b"#")
                && !reached.contains(&hash)
            {
                reached.push(hash);
            }
        }
    }

    fn child(&self, at: usize, word: &[u8]) -> Option<usize> {
        self.nodes.get(at)?.children.get(word).copied()
    }

    fn grow(&mut self, parent: usize, word: &[u8]) -> usize {
        let node = Node { is_hash: word == b"#", ..Node::default() };
        let at = match self.free.pop() {
            Some(at) => {
                if let Some(place) = self.nodes.get_mut(at) {
                    *place = node;
                }
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        };
        if let Some(parent) = self.nodes.get_mut(parent) {
            parent.children.insert(word.into(), at);
        }
        at
    }

    /// Takes out what nobody needs any more, from the end of the path.
    fn prune(&mut self, path: &[(usize, &[u8])]) {
        for pair in path.windows(2).rev() {
            let &[(parent, _), (at, word)] = pair else { return };
            let unused = |node: &Node| at != ROOT && node.children.is_empty() && node.destinations.is_empty();
            if !self.nodes.get(at).is_some_and(unused) {
                return;
            }
            if let Some(parent) = self.nodes.get_mut(parent) {
                parent.children.remove(word);
            }
            self.free.push(at);
        }
    }
}

#[cfg(test)]
mod tests;
