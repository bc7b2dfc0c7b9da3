"""A messy corpus for tests: abstracts and leaflets, with copies, boilerplate, mojibake, other scripts and noise."""

from __future__ import annotations

import random

from data.corpus.corpora import Document

SUBJECTS = "aspirin metformin ibuprofen warfarin insulin atorvastatin amoxicillin placebo exercise dialysis".split()
CONDITIONS = "hypertension diabetes asthma sepsis migraine obesity stroke anaemia pneumonia osteoporosis".split()
VERBS = "reduced increased did_not_change improved worsened predicted".split()
OUTCOMES = "mortality pain length_of_stay blood_pressure quality_of_life readmission adverse_events".split()
GERMAN = (
    "Nehmen Sie {a} nicht ein, wenn Sie überempfindlich gegen {a} sind. Bei {b} fragen Sie vor der Einnahme Ihren Arzt "
    "oder Apotheker. Die übliche Dosis beträgt {n} mg täglich, während der Mahlzeiten. Häufige Nebenwirkungen: "
    "Übelkeit, Müdigkeit, Kopfschmerzen. Für Kinder unter {n} Jahren unzugänglich aufbewahren. "
)
RUSSIAN = "Пациенты получали {n} мг препарата в течение {n} недель; побочные эффекты наблюдались редко. "
CHINESE = "患者接受每日{n}毫克的治疗，持续{n}周。不良反应很少见，主要为头痛和恶心。"
BOILERPLATE = "Copyright © 2021 Elsevier Ltd. All rights reserved. No part of this publication may be reproduced."


def words(text: str) -> str:
    return text.replace("_", " ")


def abstract(rng: random.Random) -> str:
    lines = []
    for head in ("BACKGROUND", "METHODS", "RESULTS", "CONCLUSION"):
        sentences = [
            f"In {rng.randint(20, 9000)} patients with {rng.choice(CONDITIONS)}, {rng.choice(SUBJECTS)} "
            f"{words(rng.choice(VERBS))} {words(rng.choice(OUTCOMES))} (p = 0.{rng.randint(1, 99):02d}, 95% CI "
            f"{rng.uniform(0.1, 1):.2f} to {rng.uniform(1, 4):.2f}) compared with {rng.choice(SUBJECTS)}."
            for _ in range(rng.randint(2, 6))
        ]
        lines.append(f"{head}: " + " ".join(sentences))
    return "\n".join(lines) + "\n"


def leaflet(rng: random.Random) -> str:
    parts = [
        GERMAN.format(a=rng.choice(SUBJECTS).capitalize(), b=rng.choice(CONDITIONS).capitalize(), n=rng.randint(2, 800))
        + f"Wirkstoff {rng.choice(SUBJECTS)}, Charge {rng.randint(10**5, 10**6)}.\n"
        for _ in range(rng.randint(2, 8))
    ]
    return "".join(parts)


def documents(count: int = 2000, *, seed: int = 0) -> list[Document]:
    """Returns `count` documents, a share of them with each kind of problem. Most names tell the kind."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        text = abstract(rng) if rng.random() < 0.6 else leaflet(rng)
        kind = rng.random()
        name = f"pubmed_{number % 4}.jsonl:{number}"
        if kind < 0.25:
            text += BOILERPLATE + "\n"
        elif kind < 0.29:
            text = text.replace("\n", "\nSeite 1 von 2\n").replace("ungen", "un-\ngen")
        elif kind < 0.33:
            name, text = f"leaflets/{number}.txt", leaflet(rng).encode().decode("cp1252", "replace")
        elif kind < 0.35:
            name, text = f"ru/{number}.txt", "".join(RUSSIAN.format(n=rng.randint(1, 99)) for _ in range(9))
        elif kind < 0.36:
            name, text = f"zh/{number}.txt", "".join(CHINESE.format(n=rng.randint(1, 99)) for _ in range(9))
        elif kind < 0.38:
            name = f"ocr/{number}.txt"
            text = "".join(rng.choice("|l1I.,;:_-~^°*#%&/\\()[]{} 0O5S8B\x0c\x07\xad") for _ in range(900))
        elif kind < 0.40:
            text = rng.choice(["No abstract available.", "[Abstract not available]", "n/a"])
        elif kind < 0.41:
            text = "   \n"
        elif kind < 0.46 and found:
            text = rng.choice(found).text  # an exact copy
        elif kind < 0.51 and found:
            parts = rng.choice(found).text.split(" ")
            for place in rng.sample(range(len(parts)), len(parts) // 25):
                parts[place] = rng.choice(SUBJECTS)
            name, text = f"mirror/{number}.txt", " ".join(parts)  # a near copy
        found.append(Document(name, text))
    return found
