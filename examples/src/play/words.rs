//! The words of the plays. No word belongs to two themes, so any one of them tells a reader the theme.

/// One of the players.
pub(super) struct Character {
    pub(super) name: &'static str,
    pub(super) role: &'static str,
}

/// What a character talks about, whatever the matter is.
pub(super) struct Theme {
    /// The two who think in it.
    pub(super) characters: [Character; 2],
    pub(super) nouns: &'static str,
    pub(super) adjectives: &'static str,
    pub(super) verbs: &'static str,
    /// Nouns with which the two lines of a couplet may end.
    pub(super) rhymes: &'static [(&'static str, &'static str)],
    /// The consonants of its coined words, and those that may be the last letter (`-`: none).
    pub(super) sounds: [&'static str; 2],
}

pub(super) const THEMES: [Theme; 6] = [
    Theme {
        characters: [
            Character { name: "Maren", role: "a captain without a ship" },
            Character { name: "Finn", role: "a fisherman who cannot swim" },
        ],
        nouns: "tide wave gull reef keel hull crab whale anchor",
        adjectives: "salt deep briny windy",
        verbs: "drown sail fish moor steer haul",
        rhymes: &[("bay", "way"), ("sand", "hand"), ("sea", "key"), ("rain", "chain"), ("sail", "tale")],
        sounds: ["l m n s w f v r h", "- l n s"],
    },
    Theme {
        characters: [
            Character { name: "Bram", role: "a smith who hates noise" },
            Character { name: "Ottil", role: "a keeper of other people's ovens" },
        ],
        nouns: "ember forge coal flame torch anvil kiln hammer poker",
        adjectives: "hot molten sooty charred",
        verbs: "burn melt smelt weld roast hammer",
        rhymes: &[
            ("fire", "wire"),
            ("light", "sight"),
            ("heat", "street"),
            ("gold", "cold"),
            ("spark", "dark"),
        ],
        sounds: ["b d g r z k t p v", "- r g k"],
    },
    Theme {
        characters: [
            Character { name: "Rowan", role: "a forester, mostly lost" },
            Character { name: "Wilda", role: "who was raised by badgers" },
        ],
        nouns: "fern twig stag acorn thorn beetle badger squirrel owl",
        adjectives: "green mossy thorny wooden",
        verbs: "plant climb gnaw hunt track howl",
        rhymes: &[("hill", "mill"), ("ground", "sound"), ("brook", "book"), ("air", "bear"), ("tree", "bee")],
        sounds: ["f t r w d l n b c", "- w t l"],
    },
    Theme {
        characters: [
            Character { name: "Aldous", role: "a king, by clerical error" },
            Character { name: "Ysolt", role: "a queen with a plan" },
        ],
        nouns: "duke earl edict knave oath jester baron palace herald",
        adjectives: "royal loyal gilded stately",
        verbs: "crown banish knight pardon obey flatter",
        rhymes: &[
            ("ring", "string"),
            ("hall", "ball"),
            ("crown", "town"),
            ("law", "claw"),
            ("court", "sport"),
        ],
        sounds: ["c p v l d m s t j", "- s d r"],
    },
    Theme {
        characters: [
            Character { name: "Maud", role: "a cook with a grudge" },
            Character { name: "Tobin", role: "her taster, still alive" },
        ],
        nouns: "soup onion ham pudding plum kettle turnip pepper sausage",
        adjectives: "sweet sour ripe greasy",
        verbs: "cook boil chew slurp munch devour",
        rhymes: &[("bread", "bed"), ("spoon", "tune"), ("pot", "knot"), ("jar", "star"), ("meal", "wheel")],
        sounds: ["b m p d g f t k n", "- p m t"],
    },
    Theme {
        characters: [
            Character { name: "Hob", role: "a ghost, well mannered" },
            Character { name: "Vesper", role: "who digs the graves" },
        ],
        nouns: "ghost skull worm coffin shroud crypt raven spade cobweb",
        adjectives: "dead pale grim haunted",
        verbs: "haunt mourn wail frighten entomb murder",
        rhymes: &[
            ("bone", "stone"),
            ("door", "floor"),
            ("clock", "rock"),
            ("dust", "rust"),
            ("tomb", "gloom"),
        ],
        sounds: ["k v g m r d z n h", "- k r z"],
    },
];

pub(super) const VOWELS: &str = "a e i o u";

pub(super) const PLACES: &str = "A beach in the rain|The back of a bakery|A crossroads with one road|\
    Inside the bell tower|A graveyard, in bloom|A ship that has not moved|\
    Under a very long table|The edge of a map";

pub(super) const HOURS: &str = "at noon|at dusk|in fog|after supper|during a storm|an hour too late";

pub(super) const PROPS: &str = "with a lantern|in disguise|running|with a small dog|asleep|with a cake";

pub(super) const DIRECTIONS: &str =
    "Thunder|They dance|Exit, pursued by geese|All bow|They fight, badly|It snows";

pub(super) const KINDS: &str = "TRAGEDY COMEDY MASQUE FARCE";

pub(super) const ACTS: &str = "LANTERNS|SALT|CLOSED DOORS|SOUP|GEESE|LOST KEYS|LOOSE TEETH|GOOD MANNERS";

/// What may follow a character's role in the list of players.
pub(super) const MANNERS: &str = "in love|in debt|never wrong|twice widowed|armed|looking for a hat";

/// A line that asks another to speak: what stands before the name, and the mark behind it.
pub(super) const HOOKS: &str = "What say you, |?/Speak, |./Enough, |!/Is it so, |?";

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_word_tells_its_theme() {
        let mut themes: HashMap<&str, usize> = HashMap::new();
        for (number, theme) in THEMES.iter().enumerate() {
            let rhymes = theme.rhymes.iter().flat_map(|&(first, second)| [first, second]);
            let lists = [theme.nouns, theme.adjectives, theme.verbs];
            for word in lists.into_iter().flat_map(str::split_whitespace).chain(rhymes) {
                assert_eq!(*themes.entry(word).or_insert(number), number, "{word}");
            }
        }
    }
}
