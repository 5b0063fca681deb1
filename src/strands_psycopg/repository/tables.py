"""The tables of sessions on one database: what repository, session manager and transfers read and write through."""

from strands_psycopg.database import Database
from strands_psycopg.lease import Leases
from strands_psycopg.repository.agents import Agents
from strands_psycopg.repository.conversations import Conversations
from strands_psycopg.repository.forking import SessionForker
from strands_psycopg.repository.listing import Listing
from strands_psycopg.repository.messages import Messages
from strands_psycopg.repository.multi_agents import MultiAgents
from strands_psycopg.repository.retention import Retention
from strands_psycopg.repository.sessions import Sessions


class SessionTables:
    """One object for each kind of row, and the leases that this process holds on sessions.

    Attributes:
        database: What the statements run on.
        leases: The leases that this process holds.
        sessions: Rows of sessions.
        agents: Rows of agents.
        messages: Rows of messages.
        conversations: Agents together with their messages.
        multi_agents: Rows of graphs and swarms.
        listing: Sessions and agents with counts, without their contents.
        forker: Copies of sessions.
        retention: Deletion of idle sessions, batch by batch.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.leases = Leases(database)
        self.sessions = Sessions(database)
        self.agents = Agents(database)
        self.messages = Messages(database)
        self.conversations = Conversations(database)
        self.multi_agents = MultiAgents(database)
        self.listing = Listing(database)
        self.forker = SessionForker(database, self.sessions, self.listing)
        self.retention = Retention(database)
