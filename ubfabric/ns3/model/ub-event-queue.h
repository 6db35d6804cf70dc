// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_EVENT_QUEUE_H
#define UB_EVENT_QUEUE_H

#include "ub-prefetch.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory_resource>
#include <queue>
#include <utility>
#include <vector>

namespace ns3
{

/// A time that never comes, in picoseconds.
constexpr int64_t UB_NEVER = std::numeric_limits<int64_t>::max();

/**
 * @ingroup ub-fabric
 * @brief Typed events of one logical process, in an order that nothing else can change.
 *
 * A ring of buckets, each one power of two of picoseconds wide, with a heap for what lies
 * beyond the ring. Events leave ordered by (time, key, payload), never by the order in
 * which they were pushed: that makes a run independent of how it is cut into windows, and
 * so of who watches it and on how many threads it runs.
 *
 * No event is an object on the heap: five share a cache line in a pool of lines, reused last
 * in, first out so that the cache keeps them.
 */
class UbEventQueue
{
  public:
    /// One event as it leaves the queue.
    struct Event
    {
        int64_t timePs;   //!< when, in picoseconds
        uint32_t key;     //!< kind and place, defined by the process
        uint32_t payload; //!< what, defined by the process
    };

    /**
     * @param [in] memory Memory for what the queue touches all over.
     */
    explicit UbEventQueue(std::pmr::memory_resource* memory = std::pmr::get_default_resource())
        : m_pieces(memory),
          m_heads(N_BUCKETS, NIL, memory),
          m_bits(N_BUCKETS / 64, 0)
    {
    }

    /**
     * Change the width of the buckets; only while the queue is empty.
     * @param [in] widthShift log2 of the width of a bucket in picoseconds.
     */
    void SetWidth(uint32_t widthShift)
    {
        m_shift = widthShift;
        m_base = 0;
        m_openLast = NONE_OPEN;
    }

    /**
     * Have events sorted well before they leave, for those who look ahead.
     * @param [in] n How many at least, as far as there are.
     */
    void KeepReady(uint32_t n)
    {
        m_nReady = n;
    }

    /**
     * Have events sorted well before they leave while there are many: looking ahead pays when they
     * touch more than a core's cache holds.
     * @param [in] many How many that is.
     * @param [in] n How many to sort then.
     * @return Whether there are so many.
     */
    bool KeepReadyIfMany(uint64_t many, uint32_t n)
    {
        KeepReady(m_size >= many ? n : 1);
        return m_size >= many;
    }

    /**
     * Add an event.
     * @param [in] timePs The time, not before the event that was popped last.
     * @param [in] key Kind and place.
     * @param [in] payload What.
     */
    void Push(int64_t timePs, uint32_t key, uint32_t payload)
    {
        const int64_t bucket = timePs >> m_shift;
        ++m_size;
        if (bucket <= m_openLast)
        {
            const size_t nOpen = m_open.size() - m_head;
            if (nOpen < FEW_OPEN)
            {
                Insert(m_open, m_head, {timePs, key, payload});
                return;
            }
            if (m_late.size() - m_lateHead < MOST_LATE + nOpen / 2)
            {
                Insert(m_late, m_lateHead, {timePs, key, payload});
                return;
            }
            Close();
        }
        if (m_nReady <= 1)
        {
            Link({timePs, key, payload});
            return;
        }
        // where the bucket's events are is known when its head is in the cache
        UbPrefetch(&m_heads[Slot(bucket)]);
        m_coming.push_back({timePs, key, payload});
        m_comingFirst = std::min(m_comingFirst, bucket);
        ++m_nClosed;
        if (m_coming.size() == 2 * MOST_COMING)
        {
            LinkFirstComing();
        }
    }

    /**
     * @return The time of the next event, UB_NEVER if there is none.
     */
    int64_t NextTime()
    {
        if (m_size == 0)
        {
            return UB_NEVER;
        }
        MakeReady();
        return (IsLateFirst() ? m_late[m_lateHead] : m_open[m_head]).timePs;
    }

    /**
     * Take the next event if it lies before a limit.
     * @param [in] limitPs Only an event earlier than this is taken.
     * @param [out] event The event.
     * @return Whether there was one.
     */
    bool PopBefore(int64_t limitPs, Event& event)
    {
        if (m_size == 0)
        {
            return false;
        }
        MakeReady();
        const bool isLate = IsLateFirst();
        event = isLate ? m_late[m_lateHead] : m_open[m_head];
        if (event.timePs >= limitPs)
        {
            return false;
        }
        m_base = event.timePs >> m_shift;
        Drop(isLate);
        WarmUp();
        return true;
    }

    /**
     * Take the next event if it has the time and the key of one that has left just now.
     * @param [in] event The event that has left.
     * @param [out] payload What the next one is about.
     * @return Whether there was one.
     */
    bool PopSame(const Event& event, uint32_t& payload)
    {
        if (m_size == 0)
        {
            return false;
        }
        MakeReady();
        const bool isLate = IsLateFirst();
        const Event& next = isLate ? m_late[m_lateHead] : m_open[m_head];
        if (next.timePs != event.timePs || next.key != event.key)
        {
            return false;
        }
        payload = next.payload;
        Drop(isLate);
        return true;
    }

    /**
     * Look at each event that leaves soon, once.
     * @tparam Visit What to call with the event and its number since the start.
     * @param [in,out] seen How many have been looked at since the start, by this caller.
     * @param [in] ahead How many events ahead to look.
     * @param [in] visit What to call.
     */
    template <class Visit>
    void LookAhead(uint64_t& seen, uint32_t ahead, const Visit& visit) const
    {
        const size_t end = std::min(m_open.size(), m_head + ahead);
        size_t at = seen > m_nDropped + m_head ? seen - m_nDropped : m_head;
        for (; at < end; ++at)
        {
            visit(m_open[at], m_nDropped + at);
        }
        seen = m_nDropped + at;
    }

    /**
     * @return Number of events held.
     */
    uint64_t Size() const
    {
        return m_size;
    }

  private:
    static constexpr uint32_t N_BUCKETS = 1U << 14; //!< buckets of the ring
    static constexpr uint32_t NIL = 0xffffffffU;    //!< end of a list
    static constexpr int64_t NONE_OPEN = -1;        //!< no bucket is open
    static constexpr size_t FEW_OPEN = 64;          //!< so few that others fit in among them
    static constexpr size_t MOST_LATE = 64;         //!< events that may come for open buckets
    static constexpr size_t MOST_COMING = 16;       //!< events that are linked together
    static constexpr int64_t MOST_AHEAD = 256;      //!< buckets that are opened in advance

    static constexpr uint32_t PIECE = 5;      //!< events of a piece
    static constexpr uint32_t COUNT_BITS = 3; //!< bits for how many of them there are
    static constexpr uint32_t COUNT_MASK = (1U << COUNT_BITS) - 1; //!< mask of these bits

    /// Events in a bucket's list of pieces. A list of single events would cost a cache miss for
    /// each, one after another, where a bucket waits long.
    struct alignas(64) Piece
    {
        uint32_t offset[PIECE];  //!< when, from the begin of the bucket
        uint32_t key[PIECE];     //!< kind and place
        uint32_t payload[PIECE]; //!< what
        uint32_t next;           //!< next piece of the list and number of its events
    };

    static_assert(sizeof(Piece) == 64, "a piece is one cache line");

    /// Order in which events leave.
    struct Sooner
    {
        /**
         * @param [in] a An event.
         * @param [in] b Another event.
         * @return Whether a leaves first.
         */
        bool operator()(const Event& a, const Event& b) const
        {
            return Rank(a) < Rank(b);
        }

        __extension__ using Wide = unsigned __int128; //!< holds all of an event

        /**
         * @param [in] event An event.
         * @return All of it in one number that sorts: many events have the same time, so that a
         * branch on it would often be mispredicted.
         */
        static Wide Rank(const Event& event)
        {
            return (Wide{static_cast<uint64_t>(event.timePs)} << 64) | (uint64_t{event.key} << 32) |
                   event.payload;
        }
    };

    /// Order of the heap: earliest on top.
    struct Later
    {
        /**
         * @param [in] a An event.
         * @param [in] b Another event.
         * @return Whether a lies after b.
         */
        bool operator()(const Event& a, const Event& b) const
        {
            return a.timePs > b.timePs;
        }
    };

    /**
     * @return Whether the next event came when its bucket was open.
     */
    bool IsLateFirst() const
    {
        return !m_late.empty() &&
               (m_head == m_open.size() || Sooner()(m_late[m_lateHead], m_open[m_head]));
    }

    /**
     * Take the next event away.
     * @param [in] isLate Whether it came when its bucket was open.
     */
    void Drop(bool isLate)
    {
        --m_size;
        if (!isLate)
        {
            ++m_head;
        }
        else if (++m_lateHead == m_late.size())
        {
            m_late.clear();
            m_lateHead = 0;
        }
    }

    /**
     * Bring one more piece of the bucket that is opened next into the cache: only a piece says
     * where the one after it is, so all at once would be a cache miss for each.
     */
    void WarmUp()
    {
        if (m_warm == NIL)
        {
            return;
        }
        m_warm = m_pieces[m_warm >> COUNT_BITS].next;
        PrefetchPiece(m_warm);
    }

    /// Open buckets until enough events are sorted.
    void MakeReady()
    {
        while (m_size - m_nClosed < m_nReady && m_nClosed > 0 && OpenNext())
        {
        }
    }

    /**
     * @param [in] bucket A bucket.
     * @return Its place in the ring.
     */
    static uint32_t Slot(int64_t bucket)
    {
        return static_cast<uint32_t>(bucket) & (N_BUCKETS - 1);
    }

    /**
     * Put the first half of the events that came into their buckets, and fetch what the other half
     * will touch: it has come by the time that this half is the first.
     */
    void LinkFirstComing()
    {
        m_nClosed -= MOST_COMING;
        m_comingFirst = UB_NEVER;
        for (size_t i = 0; i < MOST_COMING; ++i)
        {
            Event& later = m_coming[MOST_COMING + i];
            const int64_t bucket = later.timePs >> m_shift;
            PrefetchPiece(m_heads[Slot(bucket)]);
            m_comingFirst = std::min(m_comingFirst, bucket);
            Link(std::exchange(m_coming[i], later));
        }
        m_coming.resize(MOST_COMING);
        for (size_t i = 1; i <= std::min<size_t>(m_nFree, MOST_COMING); ++i)
        {
            UbPrefetch(&m_pieces[m_freePieces[m_nFree - i]]); // most buckets begin with one
        }
    }

    /// Put all events that came into their buckets.
    void LinkComing()
    {
        m_nClosed -= m_coming.size();
        for (const Event& event : m_coming)
        {
            Link(event);
        }
        m_coming.clear();
        m_comingFirst = UB_NEVER;
    }

    /**
     * Bring a piece into the cache.
     * @param [in] head The piece, as in Piece::next.
     */
    void PrefetchPiece(uint32_t head) const
    {
        if (head != NIL)
        {
            UbPrefetch(&m_pieces[head >> COUNT_BITS]);
        }
    }

    /**
     * Put an event in the list of its bucket, or in the heap.
     * @param [in] event The event.
     */
    [[gnu::always_inline]] void Link(const Event& event)
    {
        const int64_t bucket = event.timePs >> m_shift;
        ++m_nClosed;
        if (bucket - m_base >= static_cast<int64_t>(N_BUCKETS))
        {
            m_far.push(event);
            return;
        }
        const uint32_t slot = Slot(bucket);
        if (m_nFree == 0)
        {
            m_freePieces.resize(m_pieces.size() + 1);
            m_freePieces[m_nFree++] = static_cast<uint32_t>(m_pieces.size());
            m_pieces.emplace_back();
        }
        // whether a piece is full is anybody's guess, so there is no branch
        const uint32_t head = m_heads[slot];
        const uint32_t count = head & COUNT_MASK;
        const uint32_t isNew = count >= PIECE ? ~0U : 0U;
        const uint32_t index =
            (m_freePieces[m_nFree - 1] & isNew) | ((head >> COUNT_BITS) & ~isNew);
        Piece& piece = m_pieces[index];
        const uint32_t at = count & ~isNew;
        m_nFree -= isNew & 1;
        piece.next = (head & isNew) | (piece.next & ~isNew);
        piece.offset[at] = static_cast<uint32_t>(event.timePs) & ((1U << m_shift) - 1);
        piece.key[at] = event.key;
        piece.payload[at] = event.payload;
        m_heads[slot] = (index << COUNT_BITS) + at + 1;
        m_bits[slot / 64] |= uint64_t{1} << (slot % 64);
        m_summary[slot / 4096] |= uint64_t{1} << (slot / 64 % 64);
    }

    /**
     * Insert an event whose bucket is open.
     * @param [in,out] events Where, sorted.
     * @param [in] head First of them that has not left.
     * @param [in] event The event.
     */
    static void Insert(std::vector<Event>& events, size_t head, const Event& event)
    {
        size_t at = events.size();
        events.emplace_back();
        while (at > head && Sooner()(event, events[at - 1]))
        {
            events[at] = events[at - 1];
            --at;
        }
        events[at] = event;
    }

    /// Put what is open back, because much came that is earlier.
    [[gnu::noinline]] void Close()
    {
        m_openLast = NONE_OPEN;
        for (size_t i = m_head; i < m_open.size(); ++i)
        {
            Link(m_open[i]);
        }
        for (size_t i = m_lateHead; i < m_late.size(); ++i)
        {
            Link(m_late[i]);
        }
        m_nDropped += m_open.size(); // they come back under new numbers
        m_open.clear();
        m_head = 0;
        m_late.clear();
        m_lateHead = 0;
    }

    /**
     * @return The first bucket of the ring that holds an event, or -1.
     */
    int64_t NextInRing() const
    {
        const uint32_t start = static_cast<uint32_t>(m_base) & (N_BUCKETS - 1);
        uint32_t word = start / 64;
        uint64_t bits = m_bits[word] & (~uint64_t{0} << (start % 64));
        if (bits == 0)
        {
            // the summary says which words are not empty; wrap once around the ring
            constexpr uint32_t nWords = N_BUCKETS / 64;
            uint32_t probe = (word + 1) % nWords;
            bool found = false;
            for (uint32_t i = 0; i <= nWords / 64; ++i)
            {
                const uint64_t summary = m_summary[probe / 64] & (~uint64_t{0} << (probe % 64));
                if (summary != 0)
                {
                    word = probe / 64 * 64 + static_cast<uint32_t>(__builtin_ctzll(summary));
                    found = true;
                    break;
                }
                probe = (probe / 64 + 1) * 64 % nWords;
            }
            if (!found)
            {
                return -1;
            }
            bits = m_bits[word];
        }
        const uint32_t slot = word * 64 + static_cast<uint32_t>(__builtin_ctzll(bits));
        return m_base + ((slot - start) & (N_BUCKETS - 1));
    }

    /**
     * @param [in] ring What NextInRing returned.
     * @return The first bucket of ring and heap that holds an event, or -1.
     */
    int64_t NextClosed(int64_t ring) const
    {
        const int64_t far = m_far.empty() ? -1 : m_far.top().timePs >> m_shift;
        return ring < 0 ? far : (far < 0 ? ring : std::min(ring, far));
    }

    /**
     * Sort the next bucket for leaving, behind what is open.
     * @return Whether it is worth while; if not, what is open is enough.
     */
    bool OpenNext()
    {
        int64_t ring = NextInRing();
        int64_t bucket = NextClosed(ring);
        if (m_comingFirst <= bucket || bucket < 0)
        {
            LinkComing();
            ring = NextInRing();
            bucket = NextClosed(ring);
        }
        const bool isNeeded = m_head == m_open.size() && m_lateHead == m_late.size();
        if (!isNeeded && bucket - m_base > MOST_AHEAD)
        {
            return false; // much would come in between
        }
        m_nDropped += m_head;
        m_open.erase(m_open.begin(), m_open.begin() + static_cast<std::ptrdiff_t>(m_head));
        m_head = 0;
        const size_t before = m_open.size();
        if (bucket == ring)
        {
            const uint32_t slot = Slot(bucket);
            const int64_t beginPs = bucket << m_shift;
            for (uint32_t head = m_heads[slot]; head != NIL;)
            {
                const uint32_t index = head >> COUNT_BITS;
                Piece& piece = m_pieces[index];
                for (uint32_t i = 0; i < (head & COUNT_MASK); ++i)
                {
                    m_open.push_back({beginPs + piece.offset[i], piece.key[i], piece.payload[i]});
                }
                head = piece.next;
                m_freePieces[m_nFree++] = index;
            }
            m_heads[slot] = NIL;
            if ((m_bits[slot / 64] &= ~(uint64_t{1} << (slot % 64))) == 0)
            {
                m_summary[slot / 4096] &= ~(uint64_t{1} << (slot / 64 % 64));
            }
            // the next bucket is opened soon
            const uint64_t later = m_bits[slot / 64] & (~uint64_t{1} << (slot % 64));
            const uint32_t next =
                later != 0 ? slot / 64 * 64 + static_cast<uint32_t>(__builtin_ctzll(later))
                           : (slot / 64 * 64 + 64) & (N_BUCKETS - 1);
            m_warm = m_heads[next];
            PrefetchPiece(m_warm);
            // where buckets hold few events, that is too late; the fourth from here is not
            uint64_t further = later & (later - 1);
            further &= further - 1;
            further &= further - 1;
            if (further != 0)
            {
                PrefetchPiece(
                    m_heads[slot / 64 * 64 + static_cast<uint32_t>(__builtin_ctzll(further))]);
            }
        }
        while (!m_far.empty() && m_far.top().timePs >> m_shift == bucket)
        {
            m_open.push_back(m_far.top());
            m_far.pop();
        }
        m_nClosed -= m_open.size() - before;
        std::sort(m_open.begin() + static_cast<std::ptrdiff_t>(before), m_open.end(), Sooner());
        m_openLast = bucket;
        return true;
    }

    uint32_t m_shift{10};                   //!< log2 of the width of a bucket
    uint32_t m_nReady{1};                   //!< events to be sorted
    int64_t m_base{0};                      //!< bucket of the event popped last
    int64_t m_openLast{NONE_OPEN};          //!< last bucket in m_open
    size_t m_head{0};                       //!< next event of m_open
    size_t m_lateHead{0};                   //!< next event of m_late
    uint64_t m_size{0};                     //!< events held
    uint64_t m_nClosed{0};                  //!< of which in lists, heap, or on their way there
    uint64_t m_nDropped{0};                 //!< events that have left m_open for good
    uint32_t m_warm{NIL};                   //!< piece of the next bucket, as in Piece::next
    std::vector<Event> m_open;              //!< events of the open buckets, sorted
    std::vector<Event> m_late;              //!< events of the open buckets that came since, sorted
    std::vector<Event> m_coming;            //!< events of other buckets that came since
    int64_t m_comingFirst{UB_NEVER};        //!< first bucket of them, or before
    uint32_t m_nFree{0};                    //!< free pieces
    std::vector<uint32_t> m_freePieces;     //!< these, taken last in, first out
    std::pmr::vector<Piece> m_pieces;       //!< pool of pieces
    std::pmr::vector<uint32_t> m_heads;     //!< list of each bucket, as in Piece::next
    std::vector<uint64_t> m_bits;           //!< which buckets hold events
    uint64_t m_summary[N_BUCKETS / 4096]{}; //!< which words of m_bits are not zero
    std::priority_queue<Event, std::vector<Event>, Later> m_far; //!< beyond the ring
};

} // namespace ns3

#endif // UB_EVENT_QUEUE_H
