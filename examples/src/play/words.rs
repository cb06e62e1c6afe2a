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
    /// The consonants of its coined words: before the first vowel, between two, and last (`-`: none).
    pub(super) sounds: [&'static str; 3],
}

pub(super) const THEMES: [Theme; 6] = [
    Theme {
        characters: [
            Character { name: "Maren", role: "a captain without a ship" },
            Character { name: "Finn", role: "a fisherman who cannot swim" },
        ],
        nouns: "tide wave foam kelp gull reef keel mast oar hull brine shoal squid crab net sail buoy \
                pearl eel cod whale surf swell spray deck helm raft skiff coral shell anchor harbour lagoon \
                cove isle sailor pilot mermaid oyster barge rudder sandbar ebb current",
        adjectives: "salt wet tidal briny drowned leaking sunken seasick finned brackish deep adrift \
                     wavy soaked moored oceanic coastal pelagic scaly nautical foggy windward lee rolling",
        verbs: "drown sail anchor row fish float moor splash wash wade haul dredge flood tow steer \
                harpoon sink navigate soak beach launch caulk dive swim bail capsize",
        sounds: ["l m n s v w f p c j sl fl", "l m n s v h w f r d ll lm nn lv nd rl", "- l n s m h el is"],
    },
    Theme {
        characters: [
            Character { name: "Bram", role: "a smith who hates noise" },
            Character { name: "Ottil", role: "a keeper of other people's ovens" },
        ],
        nouns: "ember ash spark forge anvil coal flame kiln soot torch furnace iron hammer cinder bellows \
                tongs blaze smoke steel rivet chimney poker brand grate nail kindling wick lava tinder match \
                glow scorch brazier crucible hinge wedge chisel stove beacon pyre slag sparkler",
        adjectives: "hot burning molten red sooty smoky charred glowing forged scalding blazing ashen \
                     fiery singed torrid tempered sparking cindery hammered white smelted ferrous flaming",
        verbs: "burn melt forge singe smelt kindle scorch roast temper weld ignite smoulder char fuse \
                quench strike bend beat solder sear heat stoke blister brand light",
        sounds: ["b d g r t z k n p f dr gr", "d g r z b t k n p l gn rb rd zz mb zt", "- k r g d z ox ur"],
    },
    Theme {
        characters: [
            Character { name: "Rowan", role: "a forester, mostly lost" },
            Character { name: "Wilda", role: "who was raised by badgers" },
        ],
        nouns: "oak fern moss leaf root twig owl fox stag acorn birch thorn nettle badger bark branch \
                thicket hollow willow beetle hedge mushroom squirrel glade sapling ivy bramble nest log hazel \
                pine elm wren cone snail toad berry weasel hedgehog alder timber warren burrow otter grove",
        adjectives: "green mossy leafy wild rooted thorny tangled budding feral shady oaken furry \
                     leafless wooden antlered knotted bosky ferny pollen rustling",
        verbs: "plant prune climb gnaw grow uproot graft stalk hunt nibble track nest hew fell snare \
                rustle seed sniff howl forage bloom shed",
        sounds: ["b f l r w d g t n s br gw", "d l n r t w f g b s ld rl rn tt sp lw", "- n w t y l ick ow"],
    },
    Theme {
        characters: [
            Character { name: "Aldous", role: "a king, by clerical error" },
            Character { name: "Ysolt", role: "a queen with a plan" },
        ],
        nouns: "sceptre duke earl page herald edict treaty knave banner castle seal statute ransom jester \
                courtier baron subject siege dowry regent minister decree palace heir usurper envoy taxman \
                signet oath traitor council empire tribute dynasty robe usher squire countess oration \
                monarch realm purse privy",
        adjectives: "royal noble regal loyal courtly stately majestic lawful gilded feudal perfumed \
                     proud august pompous titled knighted anointed solemn haughty velvet imperial exiled",
        verbs: "rule crown banish tax knight pardon obey exile salute govern bribe flatter betray command \
                dethrone forbid ordain proclaim sentence petition ennoble appoint summon usurp swear",
        sounds: [
            "c j l p v r d m b qu ch pr",
            "b c d m p r v l s t rc rt ss ph nv lt",
            "- s x n d r ard elle",
        ],
    },
    Theme {
        characters: [
            Character { name: "Maud", role: "a cook with a grudge" },
            Character { name: "Tobin", role: "her taster, still alive" },
        ],
        nouns: "soup loaf cheese onion ham goose pepper butter pie plum stew ladle kettle ale sausage turnip \
                crumb mustard radish gravy jam dumpling bacon leek syrup platter omelette pickle trout pudding \
                garlic honey walnut spoonful cider cabbage oven apron biscuit tart broth fork cork menu",
        adjectives: "sweet sour ripe greasy stale roasted fat buttered boiled raw tasty spicy crusty \
                     peppered juicy creamy hungry pickled minced burnt candied sticky soggy spoiled",
        verbs: "eat cook boil taste chew fry season peel slice stuff swallow drink bake serve \
                stir lick devour knead baste digest sip simmer carve gobble",
        sounds: [
            "b d g m n p f l r t bl cr",
            "b d f g m p n l t k bb dd nk pp gg mp",
            "- t p n m b kin wick",
        ],
    },
    Theme {
        characters: [
            Character { name: "Hob", role: "a ghost, well mannered" },
            Character { name: "Vesper", role: "who digs the graves" },
        ],
        nouns: "ghost tomb skull worm coffin shroud crypt bat raven spade shade omen cobweb corpse relic \
                phantom grave mist spider curse candle dusk shadow demon vault widow epitaph urn cellar moth \
                lantern dagger bones midnight banshee rat hearse spectre spirit wraith requiem mirror \
                goblin",
        adjectives: "dead pale haunted grim buried hollowed eerie ghastly doomed mouldy ghostly bony \
                     cursed gaunt silent lifeless murky spectral mournful creaking dusty rotten fatal",
        verbs: "haunt bury curse mourn scare dig vanish moan rot frighten entomb whisper rattle weep \
                embalm lament grieve wail fade wither murder shudder poison conjure",
        sounds: [
            "d g k m s v n r z b kr dr",
            "g k m r v n z d th cr gr lg rk rv nt rm",
            "- s x th r k eth oth",
        ],
    },
];

/// Nouns by rhyme: three with which a first line may end, and those with which the second line may answer.
pub(super) const RHYMES: [(&str, &str); 20] = [
    ("night light flight", "sight knight height fight"),
    ("day way clay", "play bay hay ray"),
    ("stone bone throne", "crone drone tone cone"),
    ("sea key tree", "knee bee flea glee"),
    ("head bread thread", "bed lead dread shed"),
    ("heart art part", "cart dart chart start"),
    ("door floor shore", "war core lore boar"),
    ("wall hall ball", "stall fall call shawl"),
    ("ring king spring", "string wing thing swing"),
    ("hand sand land", "band strand gland stand"),
    ("hill mill quill", "till chill drill bill"),
    ("rain lane chain", "plain brain grain drain"),
    ("fire choir spire", "wire lyre mire liar"),
    ("moon spoon tune", "dune noon rune loon"),
    ("sky eye spy", "fly lie thigh sigh"),
    ("stair chair bear", "hare pear mare glare"),
    ("ground hound sound", "mound pound round wound"),
    ("clock rock lock", "flock sock dock smock"),
    ("year ear tear", "deer spear fear cheer"),
    ("book brook hook", "crook nook cook rook"),
];

pub(super) const VOWELS: &str = "a e i o u";

pub(super) const PLACES: &str = "A beach in the rain|The back of a bakery|A heath|An empty throne room|\
A crossroads with one road|Inside the bell tower|A forest, or a painting of one|The castle moat|\
Under a very long table|A graveyard, in bloom|The smithy|A ship that has not moved|The royal pantry|\
A garden of weeds|The cellar|A bridge, unfinished|A market after closing|The edge of a map|\
A courtroom without a judge|The kitchen|A hill that was a tower|A lighthouse";

pub(super) const HOURS: &str = "at noon|at dusk|near midnight|at dawn|in fog|in winter|after supper|\
before breakfast|during a storm|an hour too late|the same evening|by candlelight";

pub(super) const PROPS: &str = "with a lantern|with a letter|in disguise|running|with a small dog|\
carrying a ladder|asleep|in armour|with an axe|with a cake|singing|in tears|backwards|with a map|wet";

pub(super) const DIRECTIONS: &str = "Thunder|A bell, far off|They dance|The lamp goes out|Music|A pause|\
Exit, pursued by geese|A door slams|All bow|A cat crosses the stage|They fight, badly|Rain|Trumpets|\
A long silence|Someone laughs|The moon rises|They whisper|The wall falls over|He kneels|She counts her rings|\
Both sigh|The ghost coughs|A letter arrives|It snows";

pub(super) const KINDS: &str = "TRAGEDY COMEDY HISTORY MASQUE BALLAD FARCE RIDDLE TRIAL";

pub(super) const ACTS: &str = "LANTERNS|SALT|CLOSED DOORS|SOUP|GEESE|SMALL HOURS|LETTERS|LOST KEYS|RUST|FIRST SNOW|\
BORROWED CROWNS|LOOSE TEETH|BELLS|QUIET FEET|LONG SHADOWS|GOOD MANNERS";

/// What may follow a character's role in the list of players.
pub(super) const MANNERS: &str = "in love|in debt|never wrong|soon to be married|twice widowed|of no fixed age|\
armed|under a spell|looking for a hat|with a secret";

/// A line that asks another to speak: what stands before the name, and the mark behind it.
pub(super) const HOOKS: &str = "What say you, |?/And now, |!/Speak, |./Is it so, |?/I ask thee, |./\
Art thou there, |?/Enough, |!/Answer, |./Hark, |!/You there, |.";

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_word_tells_its_theme() {
        let mut themes: HashMap<&str, usize> = HashMap::new();
        for (number, theme) in THEMES.iter().enumerate() {
            for word in
                [theme.nouns, theme.adjectives, theme.verbs].iter().flat_map(|list| list.split_whitespace())
            {
                assert_eq!(*themes.entry(word).or_insert(number), number, "{word}");
            }
        }
    }
}
