//! [`BufferTable`]: what a backend keeps of its buffers.

use alloc::vec::Vec;

use super::Buffer;

/// What a backend keeps for each of its buffers, by number. Released places are used again and their numbers never, so it
/// stays as small as the most buffers that lived at once, and a number that outlived its buffer finds nothing.
///
/// ```
/// use minigpt_core::memory::BufferTable;
/// let mut table = BufferTable::new();
/// let (a, b) = (table.insert("a").unwrap(), table.insert("b").unwrap());
/// assert_eq!(table.remove(a), Some("a"));
/// let c = table.insert("c").unwrap();
/// assert_eq!((table.get(a), table.get(b), table.get(c)), (None, Some(&"b"), Some(&"c")));
/// assert_eq!(table.places(), 2);
/// ```
#[derive(Debug, Clone)]
pub struct BufferTable<T> {
    places: Vec<Place<T>>,
    /// The first free place; each leads to the next.
    free: Option<u32>,
}

#[derive(Debug, Clone)]
struct Place<T> {
    /// How many buffers were here before: the high half of the number.
    generation: u32,
    content: Content<T>,
}

#[derive(Debug, Clone)]
enum Content<T> {
    Taken(T),
    Free { next: Option<u32> },
}

impl<T> Default for BufferTable<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> BufferTable<T> {
    /// Without buffers.
    pub const fn new() -> Self {
        BufferTable { places: Vec::new(), free: None }
    }

    /// A number for a new buffer.
    ///
    /// # Errors
    /// What was to be kept, if the host has no memory for one more.
    pub fn insert(&mut self, value: T) -> Result<Buffer, T> {
        if let Some(index) = self.free
            && let Some(place) = self.places.get_mut(index as usize)
            && let Content::Free { next } = place.content
        {
            place.content = Content::Taken(value);
            self.free = next;
            return Ok(number(index, place.generation));
        }
        let Ok(index) = u32::try_from(self.places.len()) else { return Err(value) };
        if self.places.try_reserve(1).is_err() {
            return Err(value);
        }
        self.places.push(Place { generation: 0, content: Content::Taken(value) });
        Ok(number(index, 0))
    }

    /// What is kept for a buffer; `None` if there is no such buffer any more, or never was.
    pub fn get(&self, buffer: Buffer) -> Option<&T> {
        match self.places.get(index(buffer)) {
            Some(Place { generation, content: Content::Taken(value) })
                if *generation == generation_of(buffer) =>
            {
                Some(value)
            }
            _ => None,
        }
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, buffer: Buffer) -> Option<&mut T> {
        taken(self.places.get_mut(index(buffer))?, buffer)
    }

    /// What is kept for two different buffers.
    pub fn get_pair_mut(&mut self, a: Buffer, b: Buffer) -> Option<[&mut T; 2]> {
        let [first, second] = self.places.get_disjoint_mut([index(a), index(b)]).ok()?;
        Some([taken(first, a)?, taken(second, b)?])
    }

    /// Forgets a buffer, and hands out what was kept for it.
    pub fn remove(&mut self, buffer: Buffer) -> Option<T> {
        self.get(buffer)?;
        let place = self.places.get_mut(index(buffer))?;
        // A place whose numbers are used up is not used again.
        let next = place.generation.checked_add(1);
        let free = Content::Free { next: self.free };
        let Content::Taken(value) = core::mem::replace(&mut place.content, free) else { return None };
        if let Some(generation) = next {
            place.generation = generation;
            self.free = Some(buffer.0 as u32);
        }
        Some(value)
    }

    /// How many places there are, free ones included: as many as the most buffers that lived at once.
    pub fn places(&self) -> usize {
        self.places.len()
    }
}

fn number(index: u32, generation: u32) -> Buffer {
    Buffer(u64::from(generation) << 32 | u64::from(index))
}

fn index(buffer: Buffer) -> usize {
    buffer.0 as u32 as usize
}

fn generation_of(buffer: Buffer) -> u32 {
    (buffer.0 >> 32) as u32
}

fn taken<T>(place: &mut Place<T>, buffer: Buffer) -> Option<&mut T> {
    match &mut place.content {
        Content::Taken(value) if place.generation == generation_of(buffer) => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_never_comes_again_and_places_do() {
        let mut table = BufferTable::new();
        let kept = table.insert(0).unwrap();
        let mut gone = Vec::new();
        for round in 1..100 {
            let pair = [round, -round].map(|value| table.insert(value).unwrap());
            assert_eq!(table.get_pair_mut(pair[1], pair[0]), Some([&mut -round, &mut { round }]));
            assert_eq!(table.get_pair_mut(pair[0], pair[0]), None);
            // In another order from round to round.
            for i in [round % 2, 1 - round % 2] {
                assert!(table.remove(pair[i as usize]).is_some());
            }
            gone.extend(pair);
        }
        assert_eq!((table.places(), table.get(kept)), (3, Some(&0)));
        gone.sort();
        gone.dedup();
        assert_eq!(gone.len(), 198);
        assert!(gone.iter().all(|&buffer| table.get(buffer).is_none() && table.remove(buffer).is_none()));
    }

    #[test]
    fn a_place_whose_numbers_are_used_up_is_left_alone() {
        let mut table = BufferTable::new();
        let first = table.insert('a').unwrap();
        table.places[0].generation = u32::MAX;
        assert_eq!(table.get(first), None);
        let last = number(0, u32::MAX);
        assert_eq!(table.remove(last), Some('a'));
        assert_eq!(table.insert('b').unwrap(), number(1, 0));
        assert_eq!((table.get(last), table.get(first)), (None, None));
    }
}
