"""The tables of sessions: the common data layer of repository, session manager and transfers."""

from strands_psycopg.database import Database
from strands_psycopg.lease import Leases
from strands_psycopg.payload import Payloads
from strands_psycopg.repository.agents import Agents
from strands_psycopg.repository.checkpoints import Checkpoints
from strands_psycopg.repository.conversations import Conversations
from strands_psycopg.repository.erasure import Erasure
from strands_psycopg.repository.forking import SessionForker
from strands_psycopg.repository.listing import Listing
from strands_psycopg.repository.messages import Messages
from strands_psycopg.repository.multi_agents import MultiAgents
from strands_psycopg.repository.retention import Retention
from strands_psycopg.repository.sessions import Sessions


class SessionTables:
    """The tables of one database, schema and prefix, and the leases that this process holds on sessions.

    Attributes:
        database: The database that runs the statements.
        payloads: What encodes and decodes the documents.
        leases: The leases that this process holds.
        sessions: The table of sessions.
        agents: The table of agents.
        messages: The table of messages.
        conversations: Agents together with the messages that they hold in memory.
        checkpoints: The table of checkpoints.
        multi_agents: The table of graphs and swarms.
        listing: Lists of sessions and agents with counts.
        forker: Forking of sessions.
        retention: Deletion of idle sessions, in batches.
        erasure: Deletion of everything that belongs to an owner.
    """

    def __init__(self, database: Database, payloads: Payloads) -> None:
        self.database = database
        self.payloads = payloads
        self.leases = Leases(database)
        self.sessions = Sessions(database, payloads)
        self.agents = Agents(database, payloads)
        self.messages = Messages(database, payloads)
        self.conversations = Conversations(database, payloads)
        self.checkpoints = Checkpoints(database, payloads)
        self.multi_agents = MultiAgents(database, payloads)
        self.listing = Listing(database, payloads)
        self.forker = SessionForker(database, payloads, self.sessions, self.listing)
        self.retention = Retention(database)
        self.erasure = Erasure(database, self.retention)
