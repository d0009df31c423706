"""Tables of words: synonyms of labels, and words that change what a label next to them means."""

from __future__ import annotations

Table = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in text.split(','))


# (synonyms, the labels they may stand for: the first one in the label set is used; if there is
# none, the first of their STAND_INS). The paper's protocol does not use synonyms.
SYNONYMS: Table = (
    (
        (
            'person',
            'pedestrian',
            'people',
            'human',
            'man',
            'woman',
            'boy',
            'girl',
            'child',
            'kid',
            'baby',
            'toddler',
            'teenager',
            'adult',
            'lady',
            'gentleman',
            'guy',
            'walker',
            'worker',
            'policeman',
            'police officer',
            'player',
            'skier',
            'surfer',
            'snowboarder',
            'skateboarder',
        ),
        ('person', 'pedestrian'),
    ),
    (
        ('cyclist', 'bicyclist', 'biker', 'bike rider', 'motorcyclist'),
        ('cyclist', 'rider', 'person'),
    ),
    (
        (
            'automobile',
            'sedan',
            'hatchback',
            'suv',
            'van',
            'minivan',
            'taxi',
            'cab',
            'jeep',
            'police car',
            'sports car',
        ),
        ('car',),
    ),
    (
        (
            'lorry',
            'pickup',
            'pickup truck',
            'semi',
            'semi truck',
            'trailer truck',
            'dump truck',
            'fire truck',
            'garbage truck',
        ),
        ('truck',),
    ),
    (('minibus', 'school bus', 'coach', 'double decker', 'double decker bus'), ('bus',)),
    (('streetcar', 'trolley'), ('tram',)),
    (('trike', 'three wheeler', 'rickshaw', 'auto rickshaw', 'tuk tuk'), ('tricycle',)),
    (('bike',), ('bicycle',)),
    (('motorbike',), ('motorcycle',)),
    (('scooter', 'motor scooter'), ('moped', 'motorcycle')),
    (('pram', 'pushchair', 'baby carriage', 'baby stroller'), ('stroller',)),
    (('excavator', 'bulldozer', 'digger', 'road roller'), ('construction_vehicle',)),
    (('puppy',), ('dog',)),
    (
        ('barricade', 'guardrail', 'guard rail', 'road barrier', 'traffic barrier'),
        ('barrier',),
    ),
    (('cone', 'pylon', 'road cone', 'safety cone'), ('traffic_cone',)),
    (('stoplight', 'stop light', 'traffic signal'), ('traffic_light',)),
    (('road sign', 'street sign'), ('traffic_sign',)),
    (('luggage',), ('suitcase',)),
    (('trash can', 'garbage can', 'trash bin', 'garbage bin', 'waste bin', 'bin'), ('dustbin',)),
    (('trash', 'rubbish', 'litter'), ('garbage',)),
    (('rock', 'boulder'), ('stone',)),
    (('plane', 'aeroplane', 'aircraft', 'jet'), ('airplane',)),
    (('ship', 'sailboat', 'canoe', 'kayak'), ('boat',)),
    (('hydrant',), ('fire hydrant',)),
    (('kitten',), ('cat',)),
    (('pony',), ('horse',)),
    (('lamb',), ('sheep',)),
    (('bull', 'calf', 'cattle'), ('cow',)),
    (('rucksack',), ('backpack',)),
    (('purse',), ('handbag',)),
    (('necktie',), ('tie',)),
    (('ball', 'soccer ball', 'football', 'tennis ball', 'basketball'), ('sports ball',)),
    (('tennis racquet', 'racket', 'racquet'), ('tennis racket',)),
    (('doughnut',), ('donut',)),
    (('sofa',), ('couch',)),
    (('plant', 'houseplant'), ('potted plant',)),
    (('table',), ('dining table',)),
    (('television', 'tv monitor'), ('tv',)),
    (('computer mouse',), ('mouse',)),
    (('remote control',), ('remote',)),
    (('phone', 'mobile phone', 'smartphone', 'cellphone'), ('cell phone',)),
    (('fridge',), ('refrigerator',)),
    (('hair dryer', 'hairdryer'), ('hair drier',)),
)

# (labels of COCO and CODA and other words, what they are called in label sets that lack them: in
# Pascal VOC and BDD100K by another name, in Waymo's and Autoware's by a wider one).
STAND_INS: Table = tuple(
    (_words(words), _words(labels))
    for words, labels in (
        ('bicycle', 'bike'),
        ('motorcycle, moped', 'motorbike, motor, vehicle'),
        ('car, truck, bus, van, tram, train, tricycle, construction_vehicle', 'vehicle'),
        ('traffic_sign, warning_sign, stop sign', 'sign'),
        (
            'dog, cat, horse, sheep, cow, bird, bear, elephant, zebra, giraffe, deer, moose, elk, '
            'fox, boar, rabbit, hare, squirrel, raccoon, coyote, wolf, kangaroo, camel, monkey, '
            'pig',
            'animal',
        ),
        ('airplane', 'aeroplane'),
        ('couch', 'sofa'),
        ('dining table', 'diningtable'),
        ('potted plant', 'pottedplant'),
        ('tv', 'tvmonitor'),
    )
)

# What else people and models call these classes in captions and on street scenes; used in addition
# by match='content'. Not here, because they usually mean something else: street light (a lamp),
# seat, bow, sub, notebook, container.
CAPTION_WORDS: Table = tuple(
    (_words(words), _words(labels))
    for words, labels in (
        (
            'somebody, someone, individual, crowd, male, female, gal, fellow, dude, mom, mum, dad, '
            'mother, father, parent, son, daughter, brother, sister, sibling, grandmother, '
            'grandfather, grandchild, couple, family, husband, wife, bride, groom, boyfriend, '
            'girlfriend, friend, infant, newborn, youngster, youth, teen, grownup, senior, elder, '
            'passerby, bystander, onlooker, spectator, audience, commuter, traveler, traveller, '
            'tourist, visitor, guest, foreigner, stranger, shopper, customer, buyer, caller, '
            'hiker, camper, hunter, jogger, runner, skater, ice skater, swimmer, diver, athlete, '
            'golfer, batter, pitcher, catcher, umpire, referee, goalkeeper, teammate, coworker, '
            'performer, musician, singer, dancer, artist, photographer, '
            'chef, cook, baker, waiter, waitress, bartender, vendor, seller, cashier, farmer, '
            'fisherman, cowboy, villager, student, pupil, teacher, doctor, nurse, patient, '
            'dentist, scientist, engineer, mechanic, builder, laborer, construction worker, '
            'road worker, businessman, businesswoman, politician, soldier, serviceman, guard, '
            'security guard, cop, officer, police, policewoman, fireman, firefighter, '
            'crossing guard, mail carrier, mailman, beggar, homeless person, drinker, thief, '
            'trespasser, offender, skateboard rider, lifeguard, sailor, clown, monk, nun, '
            'workman, foreman, folk',
            'person, pedestrian',
        ),
        # People in vehicles are not on foot.
        ('passenger, pilot, conductor, jockey, driver, chauffeur', 'person'),
        (
            'motorbiker, motorbike rider, motorcycle rider, moped rider, scooter rider, '
            'bicycle rider, bike messenger, cycler, motorcycle driver, scooter driver, '
            'delivery rider, rider',
            'cyclist, rider, person',
        ),
        (
            'push bike, mountain bike, road bike, electric bike, '
            'unicycle, tandem, cycle, minibike, trike',
            'bicycle',
        ),
        (
            'auto, motorcar, motor car, passenger car, compact car, race car, racecar, racing car, '
            'station wagon, estate car, coupe, convertible, roadster, limousine, limo, taxicab, '
            'taxi cab, hybrid car, electric car, passenger vehicle, '
            'sport utility vehicle, sports utility vehicle, police vehicle, patrol car, '
            'police cruiser, squad car, antique car, vintage car, bmw, mercedes, audi, volkswagen, '
            'toyota, honda, nissan, hyundai, ford, tesla',
            'car',
        ),
        (
            'pick up truck, tow truck, box truck, delivery truck, cargo truck, '
            'cement truck, concrete mixer truck, mixer truck, tanker, tanker truck, tank truck, '
            'flatbed, flatbed truck, eighteen wheeler, 18 wheeler, big rig, tractor trailer, '
            'articulated lorry, semi trailer, semitrailer, semitruck, firetruck, '
            'fire engine, hauler, tipper, moving truck, food truck, '
            'car carrier, trash truck, refuse truck, utility truck, monster truck',
            'truck',
        ),
        (
            'autobus, omnibus, motor coach, motorcoach, tour bus, city bus, transit bus, '
            'shuttle, shuttle bus, coach bus, trolleybus, trolley bus, mini bus, '
            'passenger bus, articulated bus, doubledecker, london bus',
            'bus',
        ),
        ('trolley', 'tram, bus'),
        ('street car, tram car, tramcar, light rail, tramway, trolley car', 'tram, train'),
        (
            'locomotive, subway, metro, subway train, railcar, rail car, train car, '
            'train engine, steam engine, freight train, passenger train, commuter train, '
            'bullet train, caboose, tram, monorail, railroad car, subway car, boxcar',
            'train',
        ),
        (
            'three wheeled vehicle, three wheeled bike, three wheeled motorcycle, '
            'tuktuk, pedicab, cycle rickshaw, auto rickshaw, tri cycle',
            'tricycle',
        ),
        ('motor bike, motor cycle, motorscooter, harley, dirt bike, dirtbike', 'motorcycle'),
        ('motor scooter, vespa, electric scooter, mo ped', 'moped, motorcycle'),
        ('moped, minibike', 'motorcycle'),
        ('buggy, baby buggy, push chair, perambulator, baby pram', 'stroller'),
        (
            'shopping cart, golf cart, push cart, pushcart, handcart, hand cart, hand truck, '
            'shopping trolley, wagon, wheelbarrow, horse cart, food cart, barrow',
            'cart',
        ),
        (
            'construction machine, construction truck, construction equipment, backhoe, loader, '
            'front loader, wheel loader, steamroller, steam roller, road grader, forklift, '
            'crane, crane truck, mobile crane, earth mover, earthmover, mechanical digger, paver, '
            'construction machinery, mini excavator, cement mixer, concrete mixer',
            'construction_vehicle',
        ),
        (
            'canine, pup, hound, mutt, doggy, doggie, sheepdog, bulldog, beagle, terrier, poodle, '
            'labrador, golden retriever, retriever, german shepherd, shepherd dog, husky, '
            'dalmatian, chihuahua, corgi, collie, dachshund, pug, rottweiler, doberman, '
            'great dane, pitbull, pit bull, schnauzer, shih tzu, spaniel, cocker, greyhound, '
            'whippet, weimaraner, brindle, pomeranian, maltese, guide dog',
            'dog',
        ),
        (
            'jersey barrier, concrete barrier, traffic barricade, crash barrier, '
            'safety barrier, construction barrier, roadblock, road block, roadside barrier, '
            'guard railing, crowd barrier, water barrier, metal barrier, lane barrier, barrier '
            'gate, boom gate',
            'barrier',
        ),
        ('bollard post, traffic bollard, traffic post, delineator, delineator post', 'bollard'),
        (
            'orange cone, construction cone, warning cone, street cone, traffic pylon',
            'traffic_cone',
        ),
        (
            'signal light, traffic signal light, street signal, stop signal, '
            'red light, green light, traffic lamp, traffic control signal, traffic control light',
            'traffic_light',
        ),
        (
            'caution sign, hazard sign, danger sign, road work sign, roadwork sign, '
            'construction sign, warning triangle, warning board',
            'warning_sign, traffic_sign',
        ),
        (
            'sign, signpost, sign post, signboard, sign board, stop sign, yield sign, '
            'speed limit sign, speed sign, speed limit, highway sign, direction sign, '
            'directional sign, street name sign, road signage, signage, no parking sign, '
            'no entry sign, no stopping sign, no turn sign, no left turn sign, no right turn sign, '
            'no u turn sign, do not enter sign, no passing sign, no smoking sign, one way sign, '
            'crossing sign, pedestrian crossing sign, pedestrian sign, parking sign, '
            'bus stop sign, crosswalk sign, exit sign',
            'traffic_sign',
        ),
        ('stopsign, stop signage', 'stop sign'),
        (
            'guard booth, guard box, guardhouse, guard house, sentry booth, sentry post, '
            'security booth, toll booth, tollbooth, watch box, ticket booth',
            'sentry_box',
        ),
        (
            'utility box, electrical box, electric box, electrical cabinet, control box, '
            'traffic control box, traffic signal box, signal box, switch box, junction box, '
            'utility cabinet, power box, transformer box, traffic cabinet',
            'traffic_box',
        ),
        (
            'median, median strip, road median, traffic median, refuge island, '
            'pedestrian island, traffic divider, road divider, roundabout island',
            'traffic_island',
        ),
        ('rubble, wreckage, scrap, fallen branch', 'debris'),
        (
            'suit case, baggage, travel bag, travel case, luggage '
            'bag, luggage case, valise, rolling bag',
            'suitcase',
        ),
        (
            'dust bin, trashcan, trash bin, rubbish bin, litter bin, recycling bin, recycle bin, '
            'wheelie bin, waste basket, wastebasket, trash container, garbage container, '
            'waste container, dumpster, trash receptacle, waste receptacle',
            'dustbin',
        ),
        ('cement block, cinder block, concrete slab', 'concrete_block'),
        ('heavy equipment, machine, industrial equipment', 'machinery'),
        (
            'garbage bag, trash bag, rubbish bag, garbage pile, trash pile, refuse, waste, '
            'bin bag, rubbish pile, garbage heap, junk',
            'garbage',
        ),
        ('plastic sack, polythene bag, grocery bag, carrier bag, shopping bag', 'plastic_bag'),
        ('cobblestone, pebble, stone block', 'stone'),
        (
            'air plane, air craft, airliner, jetliner, jumbo jet, jet plane, jet airplane, '
            'passenger jet, passenger plane, fighter jet, fighter plane, airbus, biplane, '
            'monoplane, seaplane, propeller plane, glider, boeing, aero plane',
            'airplane',
        ),
        (
            'yacht, ferry, ferryboat, ferry boat, cruise ship, cruise liner, ocean liner, liner, '
            'vessel, watercraft, rowboat, row boat, rowing boat, motorboat, motor boat, '
            'speedboat, speed boat, powerboat, power boat, sail boat, sailing boat, fishing boat, '
            'house boat, houseboat, lifeboat, life boat, tugboat, tug boat, barge, dinghy, raft, '
            'gondola, catamaran, pontoon, skiff, trawler, schooner, steamboat, steamship, '
            'riverboat, paddleboat, paddle boat, sailboard, freighter, battleship, submarine, '
            'cargo ship, sailing ship',
            'boat',
        ),
        ('firehydrant, water hydrant, fire plug', 'fire hydrant'),
        ('parking metre', 'parking meter'),
        ('park bench, pew, wooden bench, bench seat', 'bench'),
        (
            'fowl, waterfowl, waterbird, shorebird, seabird, sea bird, songbird, seagull, '
            'sea gull, gull, pigeon, dove, duck, duckling, mallard, goose, gosling, swan, '
            'chicken, hen, rooster, chick, turkey, peacock, peafowl, pheasant, quail, ostrich, '
            'emu, flamingo, pelican, heron, egret, stork, crane bird, cormorant, loon, puffin, '
            'penguin, sandpiper, willet, eagle, hawk, falcon, osprey, owl, vulture, buzzard, '
            'condor, raven, crow, magpie, parrot, parakeet, macaw, cockatoo, cockatiel, lorikeet, '
            'budgie, canary, robin, sparrow, finch, warbler, oriole, chickadee, hummingbird, '
            'woodpecker, kingfisher, bluebird, blackbird, cowbird, bluejay, blue jay',
            'bird',
        ),
        ('feline, kitty, tabby, tabby cat, house cat, kitty cat, siamese, tomcat', 'cat'),
        (
            'mare, stallion, colt, foal, filly, racehorse, race horse, equine, palomino, mustang, '
            'clydesdale, bronco, bronc, donkey, mule',
            'horse',
        ),
        ('ewe, ram, goat', 'sheep'),
        ('ox, oxen, heifer, holstein, buffalo, bison, zebu, livestock', 'cow'),
        ('baby elephant, elephant calf', 'elephant'),
        ('panda, panda bear, polar bear, grizzly, grizzly bear, bear cub, brown bear', 'bear'),
        (
            'back pack, knapsack, book bag, bookbag, school bag, schoolbag, ruck sack',
            'backpack',
        ),
        ('parasol, beach umbrella', 'umbrella'),
        (
            'hand bag, wallet, briefcase, tote, tote bag, shoulder bag, clutch bag, leather bag, '
            'pocketbook, satchel, messenger bag',
            'handbag',
        ),
        ('neck tie, bow tie, bowtie', 'tie'),
        ('flying disc, flying disk, frisbee disc', 'frisbee'),
        ('ski', 'skis'),
        ('snow board', 'snowboard'),
        (
            'baseball, softball, volleyball, volley ball, beach ball, golf ball, bowling ball, '
            'rugby ball, soccerball, basket ball, foot ball',
            'sports ball',
        ),
        ('bat, softball bat, baseballbat', 'baseball bat'),
        ('catchers mitt, baseball mitt, mitt, catcher mitt, fielding glove', 'baseball glove'),
        ('skate board', 'skateboard'),
        (
            'surf board, longboard, long board, shortboard, bodyboard, body board, boogie board, '
            'skimboard, wakeboard, paddleboard, paddle board',
            'surfboard',
        ),
        ('badminton racket', 'tennis racket'),
        (
            'wine bottle, water bottle, beer bottle, flask, plastic bottle, soda bottle',
            'bottle',
        ),
        ('wineglass, glass of wine, wine goblet, goblet, champagne glass', 'wine glass'),
        (
            'mug, coffee cup, coffee mug, teacup, tea cup, paper cup, cup of coffee, tumbler',
            'cup',
        ),
        ('pocketknife, pocket knife, butter knife, knive, steak knife', 'knife'),
        ('ladle, tea spoon, teaspoon, tablespoon', 'spoon'),
        ('mixing bowl, salad bowl', 'bowl'),
        ('plantain', 'banana'),
        (
            'burger, hamburger, cheeseburger, sub sandwich, panini, club sandwich',
            'sandwich',
        ),
        ('tangerine, mandarin, clementine', 'orange'),
        ('broccolli, brocolli', 'broccoli'),
        ('hotdog, frankfurter, chili dog, corn dog, wiener', 'hot dog'),
        ('pizza pie', 'pizza'),
        ('bagel, dough nut', 'donut'),
        (
            'cupcake, cheesecake, shortcake, coffeecake, pancake, birthday cake, wedding cake, '
            'layer cake, chocolate cake, cup cake, cheese cake',
            'cake',
        ),
        (
            'stool, armchair, arm chair, rocking chair, office chair, desk chair, dining chair, '
            'lawn chair, high chair, highchair, folding chair, bar stool, barstool, beach chair',
            'chair',
        ),
        (
            'loveseat, love seat, settee, futon, recliner, chesterfield, sectional, sofa bed, '
            'sleeper sofa, divan',
            'couch',
        ),
        (
            'house plant, pot plant, flowerpot, flower pot, planter, plant pot, potted flower, '
            'potted tree',
            'potted plant',
        ),
        ('mattress, bunk bed, bunkbed, king bed, hospital bed, headboard', 'bed'),
        (
            'desk, kitchen table, dinner table, picnic table, coffee table, tabletop, table top, '
            'wooden table',
            'dining table',
        ),
        (
            'toilet bowl, toilet seat, urinal, commode, lavatory, potty, porta potty, latrine, wc',
            'toilet',
        ),
        (
            'televison, tv set, television set, flat screen, flatscreen, '
            'flat screen tv, flat screen television, tv screen, television screen, monitor, '
            'computer monitor, computer screen',
            'tv',
        ),
        (
            'laptop computer, notebook computer, computer, netbook, macbook, lap top, chromebook, '
            'pc',
            'laptop',
        ),
        ('remote controller, tv remote, television remote, wii remote, game controller', 'remote'),
        ('computer keyboard, key board', 'keyboard'),
        (
            'telephone, smart phone, iphone, android phone, flip phone',
            'cell phone',
        ),
        ('microwave oven, micro wave', 'microwave'),
        ('stove, stovetop, stove top, stove top oven, cooker', 'oven'),
        ('toaster oven', 'toaster, oven'),
        ('washbasin, wash basin, basin, kitchen sink, bathroom sink, washbowl', 'sink'),
        ('freezer, ice box, icebox, mini fridge', 'refrigerator'),
        ('textbook, novel, paperback, cookbook, text book', 'book'),
        ('wall clock, alarm clock, clock tower, clocktower, clock face', 'clock'),
        ('flower vase', 'vase'),
        ('scissor, shears, pair of scissors', 'scissors'),
        (
            'teddybear, teddy, stuffed bear, stuffed teddy bear, stuffed animal, plush bear, '
            'toy bear',
            'teddy bear',
        ),
        ('blow dryer, blow drier, hairdrier, blowdryer', 'hair drier'),
        ('tooth brush, electric toothbrush', 'toothbrush'),
    )
)

# Phrases that contain a label's word and name something else.
NOT_LABELS = _words(
    "hot dog, teddy bear, couple of, pitcher of, bird's eye, birds eye, sea lion, sea horse, "
    'truck bed, flower bed, river bed, pedestrian bridge, pedestrian signal, zebra stripes, '
    'power plant, table tennis, cable car, remote control car, cup holder, washing machine, '
    'vending machine, coffee machine, slot machine, ticket machine, space shuttle, shop sign, '
    'store sign, neon sign, restaurant sign, peace sign, tie dye, fork in the road, oven mitt, '
    'oven glove'
)

# Nouns that make a label in the singular before them a mere description: 'bus station',
# 'car door', 'apple tree'.
HEAD_NOUNS = frozenset(
    _words(
        'accident, alarm, anchor, antenna, area, bar, barn, basket, baskets, bath, battery, bell, '
        'bells, blanket, bone, bones, bonnet, boots, box, boxes, bridge, brush, brushes, bumper, '
        'cabin, cage, cap, carriage, case, chain, charger, clip, clips, cloth, cockpit, collar, '
        'collision, company, cord, costume, court, cover, crash, crew, crumbs, dashboard, dealer, '
        'dealership, depot, dock, door, doors, driver, drivers, egg, eggs, engine, exhaust, '
        'factory, farm, feathers, feeder, field, fields, food, frame, free, fur, game, garage, '
        'garages, handle, handlebar, handlebars, hangar, harbor, harbour, hat, headlight, '
        'headlights, helmet, holder, hood, hoop, horn, hose, house, houses, hull, icon, insurance, '
        'jacket, juice, kennel, key, keychain, keys, lamp, lane, lanes, leash, lesson, lid, lift, '
        'lights, line, lines, lock, locks, logo, lot, lots, mane, market, mast, mat, meat, milk, '
        'mirror, mirrors, museum, nest, net, opener, openers, orchard, pad, paper, park, '
        'passenger, passengers, path, paths, paw, paws, pedal, pedals, peel, peels, pen, pie, '
        'plate, plates, platform, player, players, pool, port, poster, print, rack, racks, rails, '
        'ramp, rental, repair, resort, roof, room, route, saddle, sauce, school, sculpture, seat, '
        'seats, service, shadow, shadows, shaped, sharing, sheet, sheets, shelf, shelter, '
        'shelters, shelves, shop, show, sign, signs, skin, slope, slopes, soup, stable, stand, '
        'station, stations, statue, stop, store, stores, strap, straps, symbol, tag, tags, tail, '
        'taillight, taillights, tails, team, terminal, themed, ticket, tickets, tire, tires, tour, '
        'tower, towers, toy, toys, track, tracks, trail, treat, treats, tree, trees, trough, '
        'trunk, tunnel, tusk, tyre, tyres, uniform, vest, walkway, wall, walls, wash, wheel, '
        'wheels, window, windows, windscreen, windshield, wing, wings, wool, wrapper, yard, zone'
    )
)
# Also verbs: nouns only if nothing follows ('a pedestrian crossing', but 'crossing the street').
HEAD_NOUNS_AT_END = frozenset(_words('crossing, crossings, parking, race, racing, stops'))

# Labels and synonyms that describe the noun after them: 'an orange vest', 'a stone wall'.
ADJECTIVES = frozenset(
    _words('orange, stone, remote, adult, teen, male, female, senior, individual, police, garbage')
)
