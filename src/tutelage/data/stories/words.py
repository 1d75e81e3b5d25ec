"""The words of the small stories: a few hundred, so that a small model can learn them all in minutes."""

GIRLS = ["Anna", "Daisy", "Ella", "Emma", "Ivy", "Lily", "Lucy", "Mia", "Nora", "Rosie", "Ruby", "Zoe"]
BOYS = ["Ben", "Bruno", "Finn", "Hugo", "Jack", "Leo", "Max", "Oscar", "Sam", "Theo", "Tim", "Tom"]
NAMES = sorted(GIRLS + BOYS)
ANIMALS = ["bear", "cat", "dog", "duck", "elephant", "fox", "frog", "goat", "hedgehog", "monkey", "mouse"]
ANIMALS += ["owl", "pony", "rabbit", "squirrel", "turtle"]
COLORS = ["blue", "green", "orange", "pink", "purple", "red", "white", "yellow"]
THINGS = ["ball", "basket", "bell", "boat", "box", "bucket", "crown", "cup", "doll", "drum", "flute", "kite"]
THINGS += ["lantern", "robot", "spoon", "umbrella", "wagon", "whistle"]
PLACES = ["beach", "castle", "farm", "forest", "garden", "hill", "market", "meadow", "park", "village"]

# what happened to the thing, and how help goes in a sad (False) and in a happy (True) story
TROUBLES = {
    "fell into the river": (
        "{helper} jumped in, but the water was too fast and the {thing} was gone.",
        "{helper} jumped in and brought back the {color} {thing}.",
    ),
    "got stuck in a tree": (
        "{helper} climbed up, but the branch was too high.",
        "{helper} climbed up and got the {color} {thing} down.",
    ),
    "fell in the mud": (
        "They washed it all day, but the mud did not come off.",
        "They washed the {color} {thing} until it was clean again.",
    ),
    "broke in two": (
        "{helper} had some glue, but the {thing} broke again.",
        "{helper} had some glue and made the {color} {thing} whole again.",
    ),
    "fell down a deep hole": (
        "{helper} dug and dug, but the hole was too deep.",
        "{helper} dug and dug until the {color} {thing} came out.",
    ),
    "was lost in the tall grass": (
        "They looked and looked, but they did not find it.",
        "They looked and looked, and there was the {color} {thing}!",
    ),
    "was blown away by the wind": (
        "{helper} ran very fast, but the wind was faster.",
        "{helper} ran very fast and caught the {color} {thing}.",
    ),
}
OPENINGS = [
    "Once upon a time, there was {an_animal} named {name}.",
    "Once there was a little {animal} named {name}.",
    "There was once a kind {animal} named {name} who lived near the {place}.",
    "In a small house lived {an_animal} named {name}.",
    "This is the story of {an_animal} named {name}.",
]
BELONGINGS = [
    "{name} had {a_color} {thing}.",
    "{name} loved to play with {a_color} {thing}.",
    "{He} had {a_color} {thing} and took it everywhere.",
    "For {his} birthday, {name} got {a_color} {thing}.",
]
JOURNEYS = [
    "One day, {name} went to the {place} with the {color} {thing}.",
    "One sunny morning, {name} went to the {place} to play.",
    "One day, {he} took the {thing} and went to the {place}.",
    "{name} was so proud that {he} went to the {place} to show it to everyone.",
]
MISHAPS = [
    "But then the {thing} {trouble}!",
    "Oh no! The {thing} {trouble}.",
    "Suddenly, the {thing} {trouble}.",
]
MISHAPS += ["{name} ran and jumped, and the {thing} {trouble}."]
SORROWS = [
    "{name} began to cry.",
    "{name} did not know what to do.",
    '"Oh no, my {color} {thing}!" said {name}.',
]
SORROWS += ["{He} sat down and cried."]
MEETINGS = [
    '{A_friend} named {helper} came by. "I will help you," said {helper}.',
    'Then {a_friend} named {helper} saw {him}. "Do not cry, {name}," said {helper}.',
    '{A_friend} named {helper} heard {him}. "Let me help you, {name}!"',
]
BEATS = [OPENINGS, BELONGINGS, JOURNEYS, MISHAPS, SORROWS, MEETINGS]
ENDINGS = {
    True: [
        '"Thank you, {helper}!" said {name}. They were very happy.',
        "{name} hugged {helper}. From that day on, they were happy friends.",
        "{name} and {helper} played together until dark, and {name} went home happy.",
        "{name} gave {helper} a big smile. What a happy day it was!",
    ],
    False: [
        '"I am sorry," said {helper}. {name} was very sad.',
        "{name} walked home slowly. It was a sad day.",
        "{name} said goodbye to {helper} and went home, sad and alone.",
        "That night, {name} thought about the {color} {thing} and was sad.",
    ],
}
REQUESTS = ["Write a {mood}story about {about}.", "Tell me a {mood}story about {about}."]
REQUESTS += ["Please write a {mood}story about {about}.", "I want a {mood}story about {about}."]
FACTS = {
    "What color is the sky?": "The sky is blue.",
    "What color is grass?": "Grass is green.",
    "What color is snow?": "Snow is white.",
    "What color is a banana?": "A banana is yellow.",
    "What color is a strawberry?": "A strawberry is red.",
    "What does a cow say?": "A cow says moo.",
    "What does a cat say?": "A cat says meow.",
    "What does a dog say?": "A dog says woof.",
    "What does a duck say?": "A duck says quack.",
    "What does an owl say?": "An owl says hoo.",
    "What does a frog say?": "A frog says ribbit.",
    "What does a sheep say?": "A sheep says baa.",
    "How many legs does a dog have?": "A dog has four legs.",
    "How many legs does a duck have?": "A duck has two legs.",
    "How many legs does a spider have?": "A spider has eight legs.",
    "How many legs does an ant have?": "An ant has six legs.",
    "How many days are in a week?": "There are seven days in a week.",
    "How many months are in a year?": "There are twelve months in a year.",
    "Where do fish live?": "Fish live in the water.",
    "Where do birds sleep?": "Birds sleep in a nest.",
    "Where does a bee live?": "A bee lives in a hive.",
    "What do rabbits like to eat?": "Rabbits like to eat carrots.",
    "What do squirrels like to eat?": "Squirrels like to eat nuts.",
    "What do monkeys like to eat?": "Monkeys like to eat bananas.",
    "What does a bee make?": "A bee makes honey.",
    "What does a cow give us?": "A cow gives us milk.",
    "What does a hen lay?": "A hen lays eggs.",
    "What is ice made of?": "Ice is made of water.",
    "When does the sun rise?": "The sun rises in the morning.",
    "When do we see stars?": "We see stars at night.",
    "What do we use to cut paper?": "We use scissors to cut paper.",
    "What is a baby dog called?": "A baby dog is called a puppy.",
    "What is a baby cat called?": "A baby cat is called a kitten.",
    "What is the opposite of big?": "The opposite of big is small.",
    "What is the opposite of hot?": "The opposite of hot is cold.",
    "What is the opposite of happy?": "The opposite of happy is sad.",
}
