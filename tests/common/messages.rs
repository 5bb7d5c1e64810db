//! Messages that prove themselves: a number, and a body that follows from it and its length.

/// A body of at least 16 bytes, with its number in the first 8 and a checksum in the next.
pub struct Stamped {
    pub number: u64,
    body: Vec<u8>,
}

impl Stamped {
    /// With about this length.
    pub fn new(number: u64, length: usize) -> Stamped {
        let mut body = vec![0; length.max(16)];
        let (head, rest) = body.split_at_mut(16);
        // Every byte depends on its place, so that parts cannot change places.
        let mut state = number.wrapping_add(1);
        for piece in rest.chunks_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            piece.copy_from_slice(&state.to_be_bytes()[..piece.len()]);
        }
        head[..8].copy_from_slice(&number.to_be_bytes());
        head[8..].copy_from_slice(&checksum(rest).to_be_bytes());
        Stamped { number, body }
    }

    /// The number of a body that arrived whole.
    pub fn read(body: &[u8]) -> Result<u64, String> {
        let (Some(number), Some(sum)) = (body.first_chunk::<8>(), body.get(8..16)) else {
            return Err(format!("{} bytes", body.len()));
        };
        let number = u64::from_be_bytes(*number);
        if sum == checksum(&body[16..]).to_be_bytes() {
            Ok(number)
        } else {
            Err(format!("message {number}: {} garbled bytes", body.len()))
        }
    }

    /// To be added up: two multisets of messages with equal sums are almost certainly the same.
    pub fn sum(&self) -> u64 {
        Stamped::sum_of(self.number, self.body.len())
    }

    pub fn sum_of(number: u64, length: usize) -> u64 {
        let mixed = (number ^ (length as u64) << 40).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        // Bounded, so that a few millions of them do not overflow.
        (mixed ^ mixed >> 29) >> 24
    }
}

impl AsRef<[u8]> for Stamped {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// FNV-1a, 8 bytes at a time.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(0xCBF2_9CE4_8422_2325, |sum, piece| {
        let mut word = [0; 8];
        word[..piece.len()].copy_from_slice(piece);
        (sum ^ u64::from_be_bytes(word)).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23)
    })
}
